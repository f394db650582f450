#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "base/cgroup_memory.h"
#include "base/env.h"

namespace longhaul {
namespace {

constexpr int64_t kMaxProcFileBytes = 1 << 20;
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

std::string ReadSmall(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxProcFileBytes);
  return text.ok() ? *std::move(text) : std::string();
}

// The number after `key` at the start of a line; `otherwise` where there is none.
int64_t NumberAfter(std::string_view text, std::string_view key, int64_t otherwise) {
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    std::string_view line = text.substr(start, end - start);
    if (line.starts_with(key)) {
      line.remove_prefix(key.size());
      while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
      int64_t value = 0;
      const auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), value);
      if (error == std::errc{}) return value;
    }
    start = end + 1;
  }
  return otherwise;
}

int64_t MemInfoBytes(std::string_view key) {
  const int64_t kib = NumberAfter(ReadSmall("/proc/meminfo"), key, -1);
  if (kib >= 0) return kib * 1024;
  return int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
}

struct ControllerFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable_key;  // in memory.stat
};
constexpr ControllerFiles kV2{"memory.max", "memory.current", "inactive_file "};
constexpr ControllerFiles kV1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "};

// Every group from `group` up to `root`. Inside a container the path of /proc/self/cgroup may not exist below the
// mount; the walk then still ends at the mount itself, which is the container's own group.
void ApplyLimits(const std::string& root, std::string group, const ControllerFiles& files, CgroupMemory& memory) {
  for (;;) {
    const std::string dir = JoinPath(root, group);
    const int64_t limit = NumberAfter(ReadSmall(JoinPath(dir, files.limit)), "", kUnlimited);  // v2 writes "max"
    if (limit < kUnlimited) {
      const int64_t usage = NumberAfter(ReadSmall(JoinPath(dir, files.usage)), "", 0);
      const int64_t cache = NumberAfter(ReadSmall(JoinPath(dir, "memory.stat")), files.reclaimable_key, 0);
      const int64_t in_use = std::max<int64_t>(usage - cache, 0);
      memory.limit_bytes = std::min(memory.limit_bytes, limit);
      memory.available_bytes = std::min(memory.available_bytes, std::max<int64_t>(limit - in_use, 0));
    }
    if (group.empty() || group == "/") return;
    const size_t slash = group.rfind('/');
    group.resize(slash == std::string::npos ? 0 : slash);
  }
}

bool HasController(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    if (list.substr(0, comma) == name) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

CgroupMemory OwnCgroupMemory() { return ReadCgroupMemory(ReadSmall("/proc/self/cgroup"), "/sys/fs/cgroup"); }

}  // namespace

CgroupMemory ReadCgroupMemory(std::string_view proc_self_cgroup, const std::string& cgroup_root) {
  CgroupMemory memory;
  while (!proc_self_cgroup.empty()) {
    const size_t end = std::min(proc_self_cgroup.find('\n'), proc_self_cgroup.size());
    const std::string_view line = proc_self_cgroup.substr(0, end);
    proc_self_cgroup.remove_prefix(std::min(end + 1, proc_self_cgroup.size()));
    // "<hierarchy>:<controllers>:<path>"; v2 has hierarchy 0 and no controllers.
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string group(line.substr(second + 1));
    if (controllers.empty()) ApplyLimits(cgroup_root, group, kV2, memory);
    if (HasController(controllers, "memory")) ApplyLimits(JoinPath(cgroup_root, "memory"), group, kV1, memory);
  }
  return memory;
}

int64_t HostMemTotalBytes() { return std::min(MemInfoBytes("MemTotal:"), OwnCgroupMemory().limit_bytes); }

int64_t HostMemAvailableBytes() { return std::min(MemInfoBytes("MemAvailable:"), OwnCgroupMemory().available_bytes); }

int HostCpuThreads() {
  // The mask has to be as wide as the kernel's, which may exceed cpu_set_t's 1024; it says EINVAL until it fits.
  for (size_t cpus = CPU_SETSIZE; cpus <= size_t{1} << 20; cpus *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(CPU_ALLOC(cpus), [](cpu_set_t* set) { CPU_FREE(set); });
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    if (mask == nullptr) break;
    CPU_ZERO_S(bytes, mask.get());
    if (::sched_getaffinity(0, bytes, mask.get()) == 0) return std::max(CPU_COUNT_S(bytes, mask.get()), 1);
  }
  return static_cast<int>(std::max(::sysconf(_SC_NPROCESSORS_ONLN), 1L));
}

std::string HostName() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

}  // namespace longhaul
