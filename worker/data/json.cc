#include "worker/data/json.h"

#include <string>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/unicode.h"

namespace longhaul::data {
namespace {

absl::Status Malformed(const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_JSON", what);
}

// Counts before anything is allocated, so that a short hostile text cannot become a large tree.
absl::Status CheckShape(std::string_view text, int64_t max_values) {
  int64_t depth = 0, values = 1;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') {
      if (++depth > limits::kMaxJsonDepth) {
        return Malformed("nests deeper than " + std::to_string(limits::kMaxJsonDepth) + " levels at byte " +
                         std::to_string(i));
      }
      ++values;
    }
    if (c == ']' || c == '}') --depth;
    if (c == ',' && ++values > max_values) {
      return Malformed("holds more than " + std::to_string(max_values) + " values");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, int64_t max_values) {
  LH_RETURN_IF_ERROR(CheckShape(text, max_values));
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: ..." without the tag.
    std::string what = error.what();
    const size_t tag = what.find("] ");
    if (tag != std::string::npos) what.erase(0, tag + 2);
    // Whose line it is, the caller says: a text of JSONL has one line, and this would call it the first.
    constexpr std::string_view kFirstLine = "parse error at line 1, column ";
    if (what.rfind(kFirstLine, 0) == 0) what.replace(0, kFirstLine.size(), "error at column ");
    if (what.size() > 300) what = what.substr(0, 300) + "...";
    return Malformed("is not JSON: " + LossyUtf8(what));  // the message quotes the input
  }
}

}  // namespace longhaul::data
