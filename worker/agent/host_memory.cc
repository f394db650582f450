#include "worker/agent/host_memory.h"

#include <algorithm>

#include "base/env.h"
#include "base/process.h"
#include "base/units.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kReserveBytes = int64_t{1} << 30;
constexpr int64_t kSmallStepBytes = int64_t{256} << 20;
constexpr int64_t kSmallMachineBytes = 8 * kGiB;

int64_t WithoutReserve(int64_t bytes) { return std::max(bytes - kReserveBytes, bytes / 2); }

}  // namespace

int64_t PlannableHostBytes(int64_t total_bytes) {
  const int64_t most = WithoutReserve(total_bytes);
  const int64_t step = most < kSmallMachineBytes ? kSmallStepBytes : kGiB;
  return most < step ? most : most / step * step;
}

int64_t OfferedHostBytes(int64_t plannable_bytes, int64_t available_bytes, int64_t own_trainers_bytes) {
  return std::min(plannable_bytes, WithoutReserve(available_bytes + own_trainers_bytes));
}

int64_t OwnTrainersBytes(const std::string& state_dir) {
  const std::string root = JoinPath(state_dir, "attempts");
  const auto names = ListDir(root);
  int64_t bytes = 0;
  if (!names.ok()) return bytes;  // none yet
  for (const std::string& name : *names) {
    const auto process = attempt::AttemptDir(JoinPath(root, name)).ReadPid();
    // Not what it maps of files: the kernel counts that as available.
    if (process.ok() && ProcessAlive(*process)) bytes += ProcessAnonymousBytes(process->pid);
  }
  return bytes;
}

}  // namespace longhaul::agent
