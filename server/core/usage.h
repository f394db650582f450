// What projects have used of late, decayed with a half-life of limits::kUsageHalfLifeSeconds: the dominant share by
// which the scheduler orders projects within a priority class.
//
//   usage_r(t) = integral of held_r(s) * 2^-((t - s) / half-life) ds        resource-seconds, per resource r
//   share      = max over r of usage_r / (capacity_r * half-life / ln 2)
//
// so that a project which has held all of a resource for ever has share 1. Values and times are handed in; not
// thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace longhaul::server {

// Device bytes, host bytes, disk bytes, CPU threads.
inline constexpr int kResources = 4;
using ResourceVector = std::array<double, kResources>;

class UsageLedger {
 public:
  // From `boot_micros` on the projects hold this much; one that is absent holds nothing. Once before anything else.
  // REQUIRES: times do not run backwards.
  void SetHeld(const std::map<std::string, ResourceVector>& held, int64_t boot_micros);
  // Something held in the past, which ended `ago_seconds` ago after `seconds`.
  void AddPast(const std::string& project, const ResourceVector& held, double seconds, double ago_seconds);
  // 0 where the project has used nothing or there is no capacity. As of the last SetHeld.
  double Share(const std::string& project, const ResourceVector& capacity) const;

 private:
  struct Entry {
    ResourceVector used{};  // as of now_
    ResourceVector held{};
  };
  std::map<std::string, Entry> projects_;
  int64_t now_boot_micros_ = 0;
};

}  // namespace longhaul::server
