#include "worker/data/jinja/lexer.h"

#include <algorithm>

#include "base/status_macros.h"
#include "worker/data/jinja/text.h"
#include "worker/data/jinja/value.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
// How Python's str.isspace sees the character at `at`; 0 = no space, else its bytes.
size_t SpaceAt(std::string_view text, size_t at) {
  const CodePoint c = DecodeAt(text, at);
  return IsPythonSpace(c.value) ? static_cast<size_t>(c.bytes) : 0;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      const size_t open = NextTag();
      if (open == std::string_view::npos) {
        Push(TokenKind::kText, at_, source_.size());
        at_ = source_.size();
        break;
      }
      EmitText(open);
      const char type = source_[open + 1];
      char sign = '\0';
      const size_t end = type == '%' ? WordTag(open, "raw", "-", &sign) : std::string_view::npos;
      if (end != std::string_view::npos) {
        CloseTag(end, sign, false);  // trim_blocks does not reach into a raw block
        LH_RETURN_IF_ERROR(LexRaw());
        continue;
      }
      at_ = open + 2;
      if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) ++at_;
      if (type == '#') {
        LH_RETURN_IF_ERROR(SkipComment());
      } else {
        Push(type == '{' ? TokenKind::kOutputBegin : TokenKind::kBlockBegin, open, open + 2);
        LH_RETURN_IF_ERROR(LexTag(type == '{' ? '}' : '%'));
      }
    }
    CountLines(source_.size());
    tokens_.push_back({TokenKind::kEnd, line_, {}});
    return std::move(tokens_);
  }

 private:
  absl::Status Error(const std::string& what) {
    CountLines(at_);
    return AtLine(TemplateError(what), line_);
  }

  // Lines are counted as tokens are made, in order.
  void CountLines(size_t to) {
    if (to <= counted_) return;
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(counted_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    counted_ = to;
  }

  void Push(TokenKind kind, size_t begin, size_t end) {
    if (kind == TokenKind::kText && begin == end) return;
    CountLines(begin);
    tokens_.push_back({kind, line_, source_.substr(begin, end - begin)});
  }

  size_t NextTag() const {
    for (size_t i = source_.find('{', at_); i != std::string_view::npos; i = source_.find('{', i + 1)) {
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    }
    return std::string_view::npos;
  }

  void EmitText(size_t open) {
    std::string_view text = source_.substr(at_, open - at_);
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    if (sign == '-') {
      text = StripEnd(text);
    } else if (sign != '+' && source_[open + 1] != '{') {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || line_starting_) && StripEnd(text.substr(line_begin)).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    Push(TokenKind::kText, at_, at_ + text.size());
  }

  // Steps over the end of a tag at `end` and what its sign and trim_blocks take with it.
  void CloseTag(size_t end, char sign, bool trims_newline) {
    at_ = end;
    if (sign == '-') {
      at_ = SkipSpace(at_);
    } else if (sign != '+' && trims_newline && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
    }
    line_starting_ = source_[at_ - 1] == '\n';
  }

  size_t SkipSpace(size_t at) const {
    while (at < source_.size()) {
      const size_t space = SpaceAt(source_, at);
      if (space == 0) break;
      at += space;
    }
    return at;
  }

  // Where the tag at `open` ends if it is `word` alone; npos if it is another. Of `signs` before the end mark, *sign
  // is the one that stands there, or 0.
  size_t WordTag(size_t open, std::string_view word, std::string_view signs, char* sign) const {
    size_t at = open + 2;
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) ++at;
    at = SkipSpace(at);
    if (source_.substr(at, word.size()) != word) return std::string_view::npos;
    at = SkipSpace(at + word.size());
    const bool has_sign = at < source_.size() && signs.find(source_[at]) != std::string_view::npos;
    *sign = has_sign ? source_[at++] : '\0';
    return source_.substr(at, 2) == "%}" ? at + 2 : std::string_view::npos;
  }

  // The text up to {% endraw %}, and that tag.
  absl::Status LexRaw() {
    for (size_t open = source_.find("{%", at_); open != std::string_view::npos; open = source_.find("{%", open + 2)) {
      char sign = '\0';
      const size_t end = WordTag(open, "endraw", "-+", &sign);
      if (end == std::string_view::npos) continue;
      EmitText(open);
      CloseTag(end, sign, true);
      return absl::OkStatus();
    }
    return Error("a raw block has no end");
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) return Error("a comment has no end");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    CloseTag(end + 2, sign, true);
    return absl::OkStatus();
  }

  // Tokens up to the end mark: `}}` or `%}`, with an optional sign before it.
  absl::Status LexTag(char mark) {
    int open_brackets = 0;
    while (at_ < source_.size()) {
      if (const size_t space = SpaceAt(source_, at_); space > 0) {
        at_ += space;
        continue;
      }
      if (open_brackets == 0) {
        const bool block = mark == '%';
        const bool sign = source_[at_] == '-' || (block && source_[at_] == '+');
        const size_t end = at_ + (sign ? 1 : 0);
        if (end + 1 < source_.size() && source_[end] == mark && source_[end + 1] == '}') {
          Push(block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, at_, end + 2);
          CloseTag(end + 2, sign ? source_[at_] : '\0', block);
          return absl::OkStatus();
        }
      }
      LH_RETURN_IF_ERROR(LexOne(&open_brackets));
    }
    return Error(std::string("a tag has no end (") + mark + "})");
  }

  absl::Status LexOne(int* open_brackets) {
    const size_t begin = at_;
    const char c = source_[at_];
    if (IsNameStart(c)) {
      while (at_ < source_.size() && (IsNameStart(source_[at_]) || IsDigit(source_[at_]))) ++at_;
      Push(TokenKind::kName, begin, at_);
      return absl::OkStatus();
    }
    if (IsDigit(c)) return LexNumber();
    if (c == '"' || c == '\'') {
      for (++at_; at_ < source_.size() && source_[at_] != c; ++at_) {
        if (source_[at_] == '\\') ++at_;
      }
      if (at_ >= source_.size()) {
        at_ = begin;
        return Error("a string has no end");
      }
      ++at_;
      Push(TokenKind::kString, begin, at_);
      return absl::OkStatus();
    }
    constexpr std::string_view kDouble[] = {"//", "**", "==", "!=", ">=", "<="};
    const std::string_view two = source_.substr(at_, 2);
    const bool is_double = std::find(std::begin(kDouble), std::end(kDouble), two) != std::end(kDouble);
    if (!is_double && std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      return Error("a character that does not belong in a tag: " +
                   std::string(source_.substr(at_, static_cast<size_t>(DecodeAt(source_, at_).bytes))));
    }
    if (c == '(' || c == '[' || c == '{') ++*open_brackets;
    if ((c == ')' || c == ']' || c == '}') && --*open_brackets < 0) return Error(std::string("an unexpected ") + c);
    at_ += is_double ? 2 : 1;
    Push(TokenKind::kOperator, begin, at_);
    return absl::OkStatus();
  }

  absl::Status LexNumber() {
    const size_t begin = at_;
    auto digits = [&] {
      while (at_ < source_.size() && (IsDigit(source_[at_]) || source_[at_] == '_')) ++at_;
    };
    digits();
    bool is_float = false;
    if (at_ + 1 < source_.size() && source_[at_] == '.' && IsDigit(source_[at_ + 1])) {
      is_float = true;
      ++at_;
      digits();
    }
    if (at_ < source_.size() && (source_[at_] | 0x20) == 'e') {
      size_t exponent = at_ + 1;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
      if (exponent < source_.size() && IsDigit(source_[exponent])) {
        is_float = true;
        at_ = exponent;
        digits();
      }
    }
    Push(is_float ? TokenKind::kFloat : TokenKind::kInteger, begin, at_);
    return absl::OkStatus();
  }

  std::string_view source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  size_t counted_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

// Reads `count` hex digits at *at; -1 where they are not there.
int64_t HexDigits(std::string_view text, size_t* at, size_t count) {
  if (*at + count > text.size()) return -1;
  int64_t value = 0;
  for (size_t i = 0; i < count; ++i) {
    const char c = text[(*at)++];
    const int digit = IsDigit(c) ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace

std::string NormalizeTemplate(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) { return Lexer(source).Run(); }

absl::StatusOr<std::string> DecodeStringToken(const Token& token) {
  const std::string_view text = token.text.substr(1, token.text.size() - 2);
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '\\' || i + 1 >= text.size()) {
      out.push_back(text[i++]);
      continue;
    }
    const char c = text[i + 1];
    i += 2;
    constexpr std::string_view kNames = "nrtabfv\\'\"";
    constexpr std::string_view kValues = "\n\r\t\a\b\f\v\\'\"";
    if (const size_t simple = kNames.find(c); simple != std::string_view::npos) {
      out.push_back(kValues[simple]);
    } else if (c == '\n') {
      continue;
    } else if (c >= '0' && c <= '7') {
      char32_t value = static_cast<char32_t>(c - '0');
      for (int n = 1; n < 3 && i < text.size() && text[i] >= '0' && text[i] <= '7'; ++n, ++i) {
        value = value * 8 + static_cast<char32_t>(text[i] - '0');
      }
      AppendUtf8(value, &out);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const int64_t value = HexDigits(text, &i, c == 'x' ? 2 : c == 'u' ? 4 : 8);
      if (value < 0 || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
        return AtLine(TemplateError(std::string("a broken \\") + c + " escape in a string"), token.line);
      }
      AppendUtf8(static_cast<char32_t>(value), &out);
    } else {
      out.push_back('\\');
      out.push_back(c);
    }
  }
  return out;
}

}  // namespace longhaul::data::jinja
