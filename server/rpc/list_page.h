// A page of a list that is in order of a key: page_size, page_token and next_page_token of AIP-158. A page ends before
// it would be larger than a message may be, and has at least one element. A token is the last element's key, opaque to
// clients.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/statusor.h"
#include "base/error.h"
#include "base/limits.h"
#include "google/protobuf/message_lite.h"

namespace longhaul::server {

// 0 = `otherwise`. INVALID_ARGUMENT names page_size.
inline absl::StatusOr<int> PageSize(int asked, int otherwise) {
  if (asked < 0) return InvalidField("page_size", "is " + std::to_string(asked) + "; must be 0 or more");
  return asked == 0 ? otherwise : std::min(asked, limits::kMaxPageSize);
}

// A token whose key is a number; "" = before all. INVALID_ARGUMENT names page_token.
inline absl::StatusOr<int64_t> NumberOfPageToken(const std::string& token) {
  if (token.empty()) return std::numeric_limits<int64_t>::min();
  int64_t number = 0;
  const char* const end = token.data() + token.size();
  const auto [at, error] = std::from_chars(token.data(), end, number);
  if (error == std::errc() && at == end) return number;
  return InvalidField("page_token", "is not one that this query gave out: start again without it");
}

// Whether one element more fits. REQUIRES: called for each that is put on the page, until it says no.
class PageRoom {
 public:
  explicit PageRoom(int page_size) : left_(page_size) {}
  bool Takes(const google::protobuf::MessageLite& element) {
    bytes_ += static_cast<int64_t>(element.ByteSizeLong());
    const bool takes = left_ > 0 && (first_ || bytes_ <= limits::kMaxListBytes);
    --left_;
    first_ = false;
    return takes;
  }

 private:
  int left_;
  int64_t bytes_ = 0;
  bool first_ = true;
};

}  // namespace longhaul::server
