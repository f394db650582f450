#include "server/core/quota.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::server {
namespace {

constexpr char kField[] = "--quota";

absl::StatusOr<int> ParseCount(const std::string& key, const std::string& value) {
  int count = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error == std::errc() && end == value.data() + value.size() && count > 0) return count;
  return InvalidField(kField, key + " is \"" + value + "\"; must be a whole number above 0");
}

absl::StatusOr<int64_t> ParseSize(const std::string& key, const std::string& value) {
  const absl::StatusOr<int64_t> bytes = ParseBytes(value);
  if (bytes.ok() && *bytes > 0) return *bytes;
  return InvalidField(kField, key + " is \"" + value + "\"; must be a size like 80GiB");
}

absl::Status ParseLimit(const std::string& pair, Quota* quota) {
  const size_t equals = pair.find('=');
  const std::string key = pair.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : pair.substr(equals + 1);
  if (key == "jobs") {
    LH_ASSIGN_OR_RETURN(quota->jobs, ParseCount(key, value));
  } else if (key == "threads") {
    LH_ASSIGN_OR_RETURN(quota->cpu_threads, ParseCount(key, value));
  } else if (key == "vram") {
    LH_ASSIGN_OR_RETURN(quota->device_bytes, ParseSize(key, value));
  } else if (key == "ram") {
    LH_ASSIGN_OR_RETURN(quota->host_bytes, ParseSize(key, value));
  } else {
    return InvalidField(kField, "has \"" + pair + "\"; must be jobs=N, vram=SIZE, ram=SIZE or threads=N");
  }
  return absl::OkStatus();
}

}  // namespace

const Quota& QuotaOf(const Quotas& quotas, const std::string& project) {
  static const Quota kNone;
  auto found = quotas.find(project);
  if (found == quotas.end()) found = quotas.find(kAnyProject);
  return found == quotas.end() ? kNone : found->second;
}

absl::Status ParseQuota(const std::string& text, Quotas* quotas) {
  const size_t colon = text.rfind(':');
  if (colon == 0 || colon == std::string::npos || colon + 1 == text.size()) {
    return InvalidField(kField, "is \"" + text + "\"; must be PROJECT:LIMIT=VALUE[,...]");
  }
  const std::string project = text.substr(0, colon);
  if (static_cast<int>(quotas->size()) >= limits::kMaxQuotas) {
    return InvalidField(kField, "is given more than " + std::to_string(limits::kMaxQuotas) + " times");
  }
  Quota quota;
  for (size_t begin = colon + 1; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    LH_RETURN_IF_ERROR(ParseLimit(text.substr(begin, end - begin), &quota));
    begin = end + 1;
  }
  if (!quotas->emplace(project, quota).second) return InvalidField(kField, "names project " + project + " twice");
  return absl::OkStatus();
}

}  // namespace longhaul::server
