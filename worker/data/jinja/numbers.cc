#include "worker/data/jinja/numbers.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "worker/data/jinja/text.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

absl::Status Overflow() { return TemplateError("an integer is out of the range of 64 bits"); }

// Without the space around it, digits of other scripts as ASCII ones, letters lower. None where something else is no
// ASCII.
std::optional<std::string> AsciiNumber(std::string_view text) {
  text = StripEnd(StripBegin(text));
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeAt(text, i);
    i += static_cast<size_t>(c.bytes);
    if (c.value < 0x80) {
      out.push_back(absl::ascii_tolower(static_cast<unsigned char>(c.value)));
      continue;
    }
    const int32_t digit = u_charDigitValue(static_cast<UChar32>(c.value));
    if (digit < 0) return std::nullopt;
    out.push_back(static_cast<char>('0' + digit));
  }
  return out;
}

bool TakeSign(std::string_view* text) {
  if (text->empty() || (text->front() != '-' && text->front() != '+')) return false;
  const bool negative = text->front() == '-';
  text->remove_prefix(1);
  return negative;
}

// Digits with single underscores between them: without the underscores, "" where there are no digits. None where an
// underscore stands elsewhere.
std::optional<std::string> TakeDigits(std::string_view* text) {
  std::string digits;
  size_t at = 0;
  for (; at < text->size() && (IsDigit((*text)[at]) || (*text)[at] == '_'); ++at) {
    const char c = (*text)[at];
    if (c != '_') {
      digits.push_back(c);
    } else if (at == 0 || at + 1 == text->size() || !IsDigit((*text)[at - 1]) || !IsDigit((*text)[at + 1])) {
      return std::nullopt;
    }
  }
  text->remove_prefix(at);
  return digits;
}

int DigitOf(char c) {
  if (IsDigit(c)) return c - '0';
  return c >= 'a' && c <= 'z' ? c - 'a' + 10 : 36;
}

// Takes 0x, 0o or 0b where the base allows it, and settles base 0.
void TakePrefix(std::string_view* text, int64_t* base) {
  int64_t named = 0;
  if (text->size() >= 2 && (*text)[0] == '0') {
    const char letter = (*text)[1];
    named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
  }
  if (named != 0 && (*base == 0 || *base == named)) {
    *base = named;
    text->remove_prefix(2);
    if (!text->empty() && text->front() == '_') text->remove_prefix(1);
    return;
  }
  if (*base != 0) return;
  *base = 10;
  // As in Python's own source, "012" is no number; "000" is.
  const bool zeros = text->find_first_not_of("0_") == std::string_view::npos;
  if (text->size() > 1 && text->front() == '0' && !zeros) *text = {};
}

}  // namespace

absl::StatusOr<std::optional<int64_t>> ParsePythonInt(std::string_view text, int64_t base) {
  const auto nothing = std::optional<int64_t>();
  if (base != 0 && (base < 2 || base > 36)) return nothing;
  const std::optional<std::string> ascii = AsciiNumber(text);
  if (!ascii.has_value()) return nothing;
  std::string_view rest = *ascii;
  const bool negative = TakeSign(&rest);
  TakePrefix(&rest, &base);
  if (rest.empty() || rest.front() == '_' || rest.back() == '_') return nothing;
  int64_t value = 0;
  bool overflows = false;
  for (size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] == '_') {
      if (rest[i - 1] == '_') return nothing;
      continue;
    }
    const int digit = DigitOf(rest[i]);
    if (digit >= base) return nothing;
    // Counted downwards: the least integer has no positive counterpart.
    overflows |= __builtin_mul_overflow(value, base, &value) || __builtin_sub_overflow(value, digit, &value);
  }
  if (overflows || (!negative && value == INT64_MIN)) return Overflow();
  return std::optional<int64_t>(negative ? value : -value);
}

std::optional<double> ParsePythonFloat(std::string_view text) {
  const std::optional<std::string> ascii = AsciiNumber(text);
  if (!ascii.has_value()) return std::nullopt;
  std::string_view rest = *ascii;
  std::string number = TakeSign(&rest) ? "-" : "";
  if (rest == "inf" || rest == "infinity" || rest == "nan") {
    number += rest;
  } else {
    const auto whole = TakeDigits(&rest);
    if (!whole.has_value()) return std::nullopt;
    std::string fraction;
    if (!rest.empty() && rest.front() == '.') {
      rest.remove_prefix(1);
      const auto digits = TakeDigits(&rest);
      if (!digits.has_value()) return std::nullopt;
      fraction = *digits;
    }
    if (whole->empty() && fraction.empty()) return std::nullopt;
    number += *whole + "." + fraction;
    if (!rest.empty() && rest.front() == 'e') {
      rest.remove_prefix(1);
      number += TakeSign(&rest) ? "e-" : "e";
      const auto exponent = TakeDigits(&rest);
      if (!exponent.has_value() || exponent->empty()) return std::nullopt;
      number += *exponent;
    }
    if (!rest.empty()) return std::nullopt;
  }
  double value = 0;
  // Too large gives an infinity, too small a zero, as in Python.
  if (!absl::SimpleAtod(number, &value)) return std::nullopt;
  return value;
}

absl::StatusOr<Value> IntegerOf(double value) {
  constexpr double kEnd = 9223372036854775808.0;  // 2^63
  if (!(value >= -kEnd && value < kEnd)) return Overflow();
  return Value::Int(static_cast<int64_t>(value));
}

}  // namespace longhaul::data::jinja
