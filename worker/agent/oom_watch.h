// Tells whether the kernel has killed for lack of memory in our control group: memory.events (cgroup v2) or
// memory.oom_control (v1). Trainers start in the agent's group. Pure over the two roots for tests. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace longhaul::agent {

// Kills so far; 0 where there is no such counter. `proc_self_cgroup` is the text of /proc/self/cgroup.
int64_t ReadOomKills(const std::string& proc_self_cgroup, const std::string& cgroup_root);
// Of this process's group.
int64_t OomKills();

}  // namespace longhaul::agent
