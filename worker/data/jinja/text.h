// Python's string operations and the texts of values: str(), repr(), json.dumps.
// Strings are valid UTF-8 and indexed by code point, as Python's are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/value.h"

namespace longhaul::data::jinja {

inline bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsPythonSpace(char32_t value);  // str.isspace
bool IsPythonWord(char32_t value);   // \w of Python's re: letters, numbers, underscore; no marks
// Without `chars`: Python whitespace. With: any of these characters.
std::string_view StripBegin(std::string_view text, const std::string* chars = nullptr);
std::string_view StripEnd(std::string_view text, const std::string* chars = nullptr);

int64_t CodePointCount(std::string_view text);
// The byte offset of each code point, and text.size() at the end.
std::vector<size_t> CodePointOffsets(std::string_view text);

std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);  // first character title-cased, the rest lower

std::string FloatRepr(double value);
absl::StatusOr<std::string> ToStr(const Value& value, Budget* budget);  // str(): what {{ }} prints
absl::StatusOr<std::string> Repr(const Value& value, Budget* budget);   // repr()

struct JsonStyle {
  int indent = -1;  // < 0: one line
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, Budget* budget);

}  // namespace longhaul::data::jinja
