// Tells whether the kernel has killed for lack of memory in our control group: memory.events (cgroup v2) or
// memory.oom_control (v1). Trainers start in the agent's group. A host without such a counter has one for all of it, in
// /proc/vmstat. Pure over the texts and the root for tests. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace longhaul::agent {

// Kills so far; 0 where there is no such counter. The texts are those of /proc/self/cgroup and /proc/vmstat.
int64_t ReadOomKills(const std::string& proc_self_cgroup, const std::string& cgroup_root,
                     const std::string& proc_vmstat);
// Of this process's group, or this host.
int64_t OomKills();

}  // namespace longhaul::agent
