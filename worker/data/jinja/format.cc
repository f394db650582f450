#include "worker/data/jinja/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "base/status_macros.h"
#include "worker/data/jinja/text.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

// More than the digits of any double before its point, with sign, point and exponent.
constexpr int64_t kFloatBytes = 512;

struct Spec {
  bool left = false, plus = false, space = false, zero = false, alternate = false;
  int64_t width = 0;
  int64_t precision = -1;  // < 0: none
  char conversion = 's';
};

// A converted argument: zeros of padding go between `prefix` and `body`, spaces before or after both.
struct Piece {
  std::string prefix;  // sign and 0x
  std::string body;
  bool numeric = false;
};

absl::Status WrongType(const Spec& spec, const char* expected, const Value& value) {
  return TemplateError(std::string("format: %") + spec.conversion + " needs " + expected + ", got " + TypeName(value));
}

std::string Sign(const Spec& spec, bool negative) { return negative ? "-" : spec.plus ? "+" : spec.space ? " " : ""; }

std::string Digits(uint64_t value, unsigned base) {
  std::string digits;
  do {
    digits.push_back("0123456789abcdef"[value % base]);
    value /= base;
  } while (value > 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::string Printed(const char* format, double value, int64_t precision) {
  std::string out(static_cast<size_t>(kFloatBytes + precision), '\0');
  const int size = std::snprintf(out.data(), out.size(), format, static_cast<int>(precision), value);
  out.resize(static_cast<size_t>(size));
  return out;
}

absl::StatusOr<Piece> IntegerPiece(const Spec& spec, const Value& value) {
  Piece piece;
  piece.numeric = true;
  const char kind = absl::ascii_tolower(static_cast<unsigned char>(spec.conversion));
  const bool decimal = kind == 'd';
  if (value.IsInteger()) {
    const int64_t number = value.integer();
    const uint64_t magnitude = number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
    piece.prefix = Sign(spec, number < 0);
    piece.body = Digits(magnitude, decimal ? 10 : kind == 'x' ? 16 : 8);
  } else if (decimal && value.Is(Kind::kFloat)) {
    if (!std::isfinite(value.number())) return WrongType(spec, "a finite number", value);
    const double number = std::trunc(value.number());
    piece.prefix = Sign(spec, number < 0);
    piece.body = Printed("%.*f", std::fabs(number), 0);
  } else {
    return WrongType(spec, decimal ? "a number" : "an integer", value);
  }
  if (static_cast<int64_t>(piece.body.size()) < spec.precision) {
    piece.body.insert(0, static_cast<size_t>(spec.precision) - piece.body.size(), '0');
  }
  if (spec.alternate && !decimal) piece.prefix += kind == 'x' ? "0x" : "0o";
  if (spec.conversion == 'X') {
    absl::AsciiStrToUpper(&piece.prefix);
    absl::AsciiStrToUpper(&piece.body);
  }
  return piece;
}

absl::StatusOr<Piece> FloatPiece(const Spec& spec, const Value& value) {
  if (!value.IsNumber()) return WrongType(spec, "a number", value);
  const double number = value.number();
  const double magnitude = std::fabs(number);
  const int64_t precision = spec.precision < 0 ? 6 : spec.precision;
  Piece piece;
  piece.numeric = true;
  piece.prefix = Sign(spec, std::signbit(number) && !std::isnan(number));
  const char kind = absl::ascii_tolower(static_cast<unsigned char>(spec.conversion));
  if (!std::isfinite(number)) {
    piece.body = std::isnan(number) ? "nan" : "inf";
  } else if (kind == 'e') {
    piece.body = Printed(spec.alternate ? "%#.*e" : "%.*e", magnitude, precision);
  } else if (kind == 'f') {
    piece.body = Printed(spec.alternate ? "%#.*f" : "%.*f", magnitude, precision);
  } else {
    piece.body = Printed(spec.alternate ? "%#.*g" : "%.*g", magnitude, precision);
  }
  if (spec.conversion != kind) absl::AsciiStrToUpper(&piece.body);
  return piece;
}

absl::StatusOr<Piece> CharacterPiece(const Spec& spec, const Value& value) {
  Piece piece;
  if (value.Is(Kind::kString) && CodePointCount(value.str()) == 1) {
    piece.body = value.str();
    return piece;
  }
  const int64_t code = value.IsInteger() ? value.integer() : -1;
  // A lone surrogate has no UTF-8.
  if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return WrongType(spec, "a character", value);
  AppendUtf8(static_cast<char32_t>(code), &piece.body);
  return piece;
}

// ascii(): a representation with every other character escaped.
std::string AsciiOnly(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeAt(text, i);
    i += static_cast<size_t>(c.bytes);
    if (c.value < 0x80) {
      out.push_back(static_cast<char>(c.value));
      continue;
    }
    char escape[16];
    const char* format = c.value < 0x100 ? "\\x%02x" : c.value < 0x10000 ? "\\u%04x" : "\\U%08x";
    std::snprintf(escape, sizeof(escape), format, static_cast<unsigned>(c.value));
    out += escape;
  }
  return out;
}

class Formatter {
 public:
  Formatter(const std::string& format, const Value& arguments, Budget* budget)
      : format_(format), arguments_(arguments), budget_(budget) {
    is_tuple_ = arguments.Is(Kind::kList) && arguments.list().tuple;
    if (!is_tuple_) single_ = arguments;
  }

  absl::StatusOr<Value> Run() {
    while (at_ < format_.size()) {
      const size_t percent = std::min(format_.find('%', at_), format_.size());
      LH_RETURN_IF_ERROR(Put(std::string_view(format_).substr(at_, percent - at_)));
      at_ = percent;
      if (at_ < format_.size()) LH_RETURN_IF_ERROR(One());
    }
    // What stands alone and can be looked into may be left over, as in Python.
    const bool optional = arguments_.Is(Kind::kDict) || arguments_.Is(Kind::kList) || arguments_.Is(Kind::kUndefined);
    const bool left = is_tuple_ ? next_ < arguments_.list().items.size() : single_.has_value() && !optional;
    if (left) return TemplateError("format: not all arguments are used");
    return Value::String(std::move(out_));
  }

 private:
  absl::Status Put(std::string_view text) {
    LH_RETURN_IF_ERROR(budget_->Bytes(static_cast<int64_t>(text.size())));
    out_.append(text);
    return absl::OkStatus();
  }

  absl::StatusOr<char> Peek() const {
    if (at_ < format_.size()) return format_[at_];
    return TemplateError("format: a conversion has no end");
  }

  absl::StatusOr<Value> NextArgument() {
    if (is_tuple_ && next_ < arguments_.list().items.size()) return arguments_.list().items[next_++];
    if (is_tuple_ || !single_.has_value()) return TemplateError("format: not enough arguments");
    return *std::exchange(single_, std::nullopt);
  }

  // (name): what the next conversion takes.
  absl::Status Name() {
    if (!arguments_.Is(Kind::kDict)) return TemplateError("format: %(name) needs named arguments");
    const size_t begin = ++at_;
    for (int open = 1; open > 0; ++at_) {
      LH_ASSIGN_OR_RETURN(const char c, Peek());
      open += c == '(' ? 1 : c == ')' ? -1 : 0;
    }
    const std::string name = format_.substr(begin, at_ - 1 - begin);
    const Value* found = arguments_.dict().Find(name);
    if (found == nullptr) return TemplateError("format: there is no argument '" + name + "'");
    single_ = *found;
    return absl::OkStatus();
  }

  // Digits, or * for an argument. No digits are 0.
  absl::StatusOr<int64_t> Number() {
    int64_t number = 0;
    if (at_ < format_.size() && format_[at_] == '*') {
      ++at_;
      LH_ASSIGN_OR_RETURN(const Value value, NextArgument());
      if (!value.IsInteger()) return TemplateError("format: * needs an integer");
      number = value.integer();
    }
    for (; at_ < format_.size() && format_[at_] >= '0' && format_[at_] <= '9' && number <= INT32_MAX; ++at_) {
      number = number * 10 + (format_[at_] - '0');
    }
    if (number > INT32_MAX || number < -INT32_MAX) return TemplateError("format: a width or precision is too large");
    return number;
  }

  absl::StatusOr<Spec> ReadSpec() {
    Spec spec;
    LH_ASSIGN_OR_RETURN(char c, Peek());
    if (c == '(') LH_RETURN_IF_ERROR(Name());
    for (bool flag = true; flag;) {
      LH_ASSIGN_OR_RETURN(c, Peek());
      flag = c == '-' || c == '+' || c == ' ' || c == '0' || c == '#';
      spec.left |= c == '-';
      spec.plus |= c == '+';
      spec.space |= c == ' ';
      spec.zero |= c == '0';
      spec.alternate |= c == '#';
      at_ += flag ? 1 : 0;
    }
    LH_ASSIGN_OR_RETURN(spec.width, Number());
    if (spec.width < 0) {  // only from *
      spec.left = true;
      spec.width = -spec.width;
    }
    LH_ASSIGN_OR_RETURN(c, Peek());
    if (c == '.') {
      ++at_;
      LH_ASSIGN_OR_RETURN(spec.precision, Number());
      spec.precision = std::max<int64_t>(spec.precision, 0);
      LH_ASSIGN_OR_RETURN(c, Peek());
    }
    if (c == 'h' || c == 'l' || c == 'L') {  // C's sizes mean nothing here
      ++at_;
      LH_ASSIGN_OR_RETURN(c, Peek());
    }
    ++at_;
    spec.conversion = c == 'i' || c == 'u' ? 'd' : c;
    return spec;
  }

  absl::StatusOr<Piece> Convert(const Spec& spec, const Value& value) {
    switch (spec.conversion) {
      case 'd':
      case 'x':
      case 'X':
      case 'o':
        return IntegerPiece(spec, value);
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        return FloatPiece(spec, value);
      case 'c':
        return CharacterPiece(spec, value);
      default:
        break;
    }
    auto text = spec.conversion == 's' ? ToStr(value, budget_) : Repr(value, budget_);
    LH_RETURN_IF_ERROR(text.status());
    Piece piece;
    piece.body = spec.conversion == 'a' ? AsciiOnly(*text) : *std::move(text);
    if (spec.precision >= 0 && spec.precision < CodePointCount(piece.body)) {
      piece.body.resize(CodePointOffsets(piece.body)[static_cast<size_t>(spec.precision)]);
    }
    return piece;
  }

  absl::Status One() {
    ++at_;  // %
    LH_ASSIGN_OR_RETURN(const Spec spec, ReadSpec());
    if (spec.conversion == '%') return Put("%");
    if (std::string_view("dxXoeEfFgGcrsa").find(spec.conversion) == std::string_view::npos) {
      return TemplateError("format: a conversion is not known");
    }
    LH_ASSIGN_OR_RETURN(const Value value, NextArgument());
    // Before anything is built.
    LH_RETURN_IF_ERROR(budget_->Bytes(spec.width + std::max<int64_t>(spec.precision, 0)));
    LH_ASSIGN_OR_RETURN(const Piece piece, Convert(spec, value));
    const int64_t size = CodePointCount(piece.prefix) + CodePointCount(piece.body);
    const auto padding = static_cast<size_t>(std::max<int64_t>(spec.width - size, 0));
    const bool zeros = spec.zero && piece.numeric && !spec.left;
    if (!spec.left && !zeros) out_.append(padding, ' ');
    LH_RETURN_IF_ERROR(Put(piece.prefix));
    if (zeros) out_.append(padding, '0');
    LH_RETURN_IF_ERROR(Put(piece.body));
    if (spec.left) out_.append(padding, ' ');
    return absl::OkStatus();
  }

  const std::string& format_;
  const Value& arguments_;
  Budget* budget_;
  bool is_tuple_ = false;
  size_t next_ = 0;              // of a tuple
  std::optional<Value> single_;  // what the next conversion takes, where the arguments are no tuple
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<Value> PercentFormat(const std::string& format, const Value& arguments, Budget* budget) {
  return Formatter(format, arguments, budget).Run();
}

}  // namespace longhaul::data::jinja
