// Template text to tokens, with the whitespace rules that chat templates are rendered under: trim_blocks and
// lstrip_blocks on, one trailing newline dropped, `-` and `+` marks; what {% raw %} holds is text. Source: Jinja 3.1's
// lexer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::data::jinja {

enum class TokenKind : unsigned char {
  kText,         // literal output
  kOutputBegin,  // {{
  kOutputEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,  // `text` with its quotes, escapes not yet decoded
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string_view text;  // into the source
  bool Is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
};

// \r\n and \r become \n; one trailing newline goes.
std::string NormalizeTemplate(std::string_view source);

// REQUIRES: `source` is valid UTF-8 from NormalizeTemplate, and outlives the tokens. INVALID_ARGUMENT names the line.
// The last token is kEnd.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

// The value of a string token. INVALID_ARGUMENT for a broken escape.
absl::StatusOr<std::string> DecodeStringToken(const Token& token);

}  // namespace longhaul::data::jinja
