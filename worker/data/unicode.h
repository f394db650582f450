// UTF-8 and the three character classes that tokenizer regexes name: \p{L}, \p{N}, \s.
// Classes come from ICU's Unicode data. Thread-safe: no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace longhaul::data {

struct CodePoint {
  char32_t value = 0;
  int bytes = 0;  // 0 where there is nothing to decode
};

// The number of leading bytes that are whole, valid UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
size_t ValidUtf8Prefix(std::string_view text);
inline bool IsValidUtf8(std::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

// The code point at `offset`. REQUIRES: valid UTF-8, offset at a boundary and < text.size().
inline CodePoint DecodeAt(std::string_view text, size_t offset) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data()) + offset;
  if (p[0] < 0x80) return {p[0], 1};
  if (p[0] < 0xE0) return {static_cast<char32_t>((p[0] & 0x1F) << 6 | (p[1] & 0x3F)), 2};
  if (p[0] < 0xF0) return {static_cast<char32_t>((p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F)), 3};
  return {static_cast<char32_t>((p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F)), 4};
}

// The code point that ends just before `offset`. REQUIRES: valid UTF-8, offset at a boundary and > 0.
CodePoint DecodeBefore(std::string_view text, size_t offset);

void AppendUtf8(char32_t value, std::string* out);

// Valid UTF-8 from any bytes: each maximal invalid part becomes U+FFFD, as Rust's from_utf8_lossy does.
std::string LossyUtf8(std::string_view bytes);

enum class CharClass : uint8_t { kLetter, kNumber, kSpace, kOther };

// \p{L}, \p{N} (Nd, Nl, No), \s (White_Space), or none of them.
CharClass ClassOfNonAscii(char32_t value);
inline CharClass ClassOf(char32_t value) {
  if (value >= 0x80) return ClassOfNonAscii(value);
  if ((value | 0x20) - 'a' < 26) return CharClass::kLetter;
  if (value - '0' < 10) return CharClass::kNumber;
  if (value == ' ' || value - 9 < 5) return CharClass::kSpace;
  return CharClass::kOther;
}

// \w as Rust's regex crate has it: Alphabetic, M, Nd, Pc, Join_Control.
bool IsWordChar(char32_t value);

}  // namespace longhaul::data
