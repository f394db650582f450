#include "worker/formats/json_strict.h"

#include <charconv>
#include <cstdlib>
#include <set>
#include <vector>

#include "base/env.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/formats/file_error.h"

namespace longhaul::formats {
namespace {

// Watches the parse and remembers the first rule broken. From then on every value is discarded, so that a hostile
// document costs no more memory.
class Rules {
 public:
  bool operator()(int depth, nlohmann::json::parse_event_t event, const nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (!broken_.empty()) return false;
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (depth >= limits::kMaxJsonDepth) {
          broken_ = "is nested deeper than " + std::to_string(limits::kMaxJsonDepth);
          return false;
        }
        keys_.emplace_back();
        break;
      case Event::object_end:
      case Event::array_end:
        if (!keys_.empty()) keys_.pop_back();
        break;
      case Event::key:
        if (!keys_.back().insert(parsed.get_ref<const std::string&>()).second) {
          broken_ = "has the key \"" + Printable(parsed.get_ref<const std::string&>()) + "\" twice";
          return false;
        }
        break;
      case Event::value:
        break;
    }
    return true;
  }
  const std::string& broken() const { return broken_; }

 private:
  std::vector<std::set<std::string>> keys_;
  std::string broken_;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonStrict(std::string_view text, const std::string& file) {
  // The parser takes a NUL for the end of its input and skips a byte-order mark; JSON allows neither.
  if (size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return BadFile(file, "byte " + std::to_string(nul) + " is NUL, which JSON does not allow");
  }
  if (text.substr(0, 3) == "\xef\xbb\xbf") return BadFile(file, "starts with a byte-order mark");
  Rules rules;
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(
        text.begin(), text.end(),
        [&rules](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
          return rules(depth, event, value);
        },
        /*allow_exceptions=*/true);
  } catch (const nlohmann::json::exception& e) {
    if (rules.broken().empty()) return BadFile(file, "is not valid JSON: " + Printable(e.what(), /*max_bytes=*/300));
  }
  if (!rules.broken().empty()) return BadFile(file, rules.broken());
  return parsed;
}

absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path) {
  LH_ASSIGN_OR_RETURN(std::string text, ReadFile(path, limits::kMaxJsonFileBytes));
  return ParseJsonStrict(text, path);
}

std::string PythonFloat(double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  // Python writes exponents below -4 and from 16 up; to_chars already gives them sign and two digits.
  if (exponent < -4 || exponent >= 16) return text;
  std::string digits;
  for (char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  const std::string sign = text[0] == '-' ? "-" : "";
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace longhaul::formats
