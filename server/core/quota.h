// What a project may hold at once. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace longhaul::server {

// Of running attempts of kind TRAIN; 0 = no limit.
struct Quota {
  int jobs = 0;
  int64_t device_bytes = 0;
  int64_t host_bytes = 0;
  int cpu_threads = 0;
  bool operator==(const Quota&) const = default;
};

inline constexpr char kAnyProject[] = "*";  // the quota of projects that have none of their own
using Quotas = std::map<std::string, Quota>;

const Quota& QuotaOf(const Quotas& quotas, const std::string& project);

// "PROJECT:jobs=4,vram=80GiB,ram=64GiB,threads=16", any of them; PROJECT may be "*". Adds to `quotas`.
// INVALID_ARGUMENT names the field; a project that comes twice is one.
absl::Status ParseQuota(const std::string& text, Quotas* quotas);

}  // namespace longhaul::server
