#include "server/core/page_token.h"

#include <charconv>

#include "base/error.h"
#include "base/hash.h"

namespace longhaul::server {
namespace {

constexpr size_t kHashDigits = 16;

std::string FilterHash(const JobFilter& filter) {
  std::string text;
  const auto add = [&text](const std::string& part) { text += std::to_string(part.size()) + ":" + part; };
  add(filter.project);
  for (const JobState state : filter.states) add(Name(state));
  add(filter.model);
  for (const auto& [key, value] : filter.labels) {
    add(key);
    add(value);
  }
  add(std::to_string(filter.created_after_micros));
  add(std::to_string(filter.created_before_micros));
  add(filter.id_prefix);
  add(filter.oldest_first ? "oldest" : "newest");
  return Sha256Hex(text).substr(0, kHashDigits);
}

}  // namespace

std::string MakePageToken(const JobFilter& filter, uint64_t last_create_number) {
  return FilterHash(filter) + std::to_string(last_create_number);
}

absl::StatusOr<uint64_t> ReadPageToken(const JobFilter& filter) {
  const std::string& token = filter.page_token;
  uint64_t number = 0;
  if (token.size() > kHashDigits && token.compare(0, kHashDigits, FilterHash(filter)) == 0) {
    const char* end = token.data() + token.size();
    const auto [at, error] = std::from_chars(token.data() + kHashDigits, end, number);
    if (error == std::errc{} && at == end) return number;
  }
  return InvalidField("page_token", "is not one that this query gave out: start again without it");
}

}  // namespace longhaul::server
