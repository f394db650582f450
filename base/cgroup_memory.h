// The memory limit that control groups (v2 and v1) put on a process. Pure over the two roots, so that tests hand in
// their own. Thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace longhaul {

struct CgroupMemory {
  // The tightest limit on the way up to the root; the maximum where there is none.
  int64_t limit_bytes = std::numeric_limits<int64_t>::max();
  // The least (limit - usage + reclaimable page cache) on that way, never below 0; the maximum where there is none.
  int64_t available_bytes = std::numeric_limits<int64_t>::max();
};

// `proc_self_cgroup` is the text of /proc/self/cgroup, `cgroup_root` is /sys/fs/cgroup.
CgroupMemory ReadCgroupMemory(std::string_view proc_self_cgroup, const std::string& cgroup_root);

}  // namespace longhaul
