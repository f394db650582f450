#include "worker/agent/oom_watch.h"

#include <algorithm>
#include <optional>
#include <sstream>

#include "base/env.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kMaxProcFileBytes = 1 << 16;

// nullopt where the text has none: kernels before 4.13, and the root of the groups.
std::optional<int64_t> Counter(const std::string& text) {
  std::istringstream words(text);
  std::string key;
  int64_t value = 0;
  while (words >> key >> value) {
    if (key == "oom_kill") return value;
  }
  return std::nullopt;
}

std::optional<int64_t> CounterOf(const std::string& path) {
  return Counter(ReadFile(path, kMaxProcFileBytes).value_or(""));
}

}  // namespace

int64_t ReadOomKills(const std::string& proc_self_cgroup, const std::string& cgroup_root,
                     const std::string& proc_vmstat) {
  std::istringstream lines(proc_self_cgroup);
  std::string line;
  std::optional<int64_t> kills;
  while (std::getline(lines, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) kills = std::max(kills, CounterOf(cgroup_root + path + "/memory.events"));
    if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      kills = std::max(kills, CounterOf(cgroup_root + "/memory" + path + "/memory.oom_control"));
    }
  }
  return kills.has_value() ? *kills : Counter(proc_vmstat).value_or(0);
}

int64_t OomKills() {
  return ReadOomKills(ReadFile("/proc/self/cgroup", kMaxProcFileBytes).value_or(""), "/sys/fs/cgroup",
                      ReadFile("/proc/vmstat", kMaxProcFileBytes).value_or(""));
}

}  // namespace longhaul::agent
