#include "worker/agent/gpu_inventory.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <set>
#include <thread>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/process.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "wire/device_probe.h"
#include "wire/model_values.h"
#include "worker/agent/inventory.h"
#include "worker/agent/state_cache.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::agent {
namespace {

using Log = std::function<void(const std::string&)>;
using Cancelled = std::function<bool()>;

constexpr int kLookMs = 20;
constexpr int64_t kProbeMs = 60'000;
constexpr int64_t kLeastGpuBytes = 2 * kGiB;  // with less a GPU is not offered
constexpr int kMostGpuThreads = 8;            // of its trainer: they load the model and touch pinned memory

// Ends with the probe's own exit code, or kills it: a driver that hangs must not hold the worker up.
absl::Status Await(const ProcessId& probe, const Cancelled& cancelled) {
  for (int64_t waited_ms = 0;; waited_ms += kLookMs) {
    const ExitState state = ReapProcess(probe);
    if (state.exited && state.exit_code == 0) return absl::OkStatus();
    if (state.exited) {
      return absl::InternalError(state.signal != 0 ? "was ended by signal " + std::to_string(state.signal)
                                                   : "ended with code " + std::to_string(state.exit_code));
    }
    const bool stop = cancelled != nullptr && cancelled();
    if (stop || waited_ms >= kProbeMs) {
      LH_RETURN_IF_ERROR(SignalProcess(probe, SIGKILL, /*group=*/true));
      if (stop) return absl::CancelledError("the probe of the GPUs was cancelled");
      return absl::DeadlineExceededError("did not end within " + FormatDuration(kProbeMs / 1000));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(kLookMs));
  }
}

absl::StatusOr<wire::DeviceProbe> RunProbe(const InventoryOptions& options, const char* mode,
                                           const Cancelled& cancelled) {
  const std::string out = JoinPath(options.state_dir, "gpus.probe");
  LH_RETURN_IF_ERROR(RemoveTree(out));
  SpawnOptions child;
  child.argv = {options.trainer_path, "--devices", mode};
  child.stdout_path = out;
  LH_ASSIGN_OR_RETURN(const ProcessId probe, Spawn(child));
  LH_RETURN_IF_ERROR(Await(probe, cancelled));
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(out, limits::kMaxJsonFileBytes));
  LH_RETURN_IF_ERROR(RemoveTree(out));
  return wire::DeviceProbeFromJson(text);
}

// The GPUs that trainers of an earlier agent are on: theirs is not other programs' memory.
std::set<std::string> GpusOfOwnTrainers(const std::string& state_dir) {
  std::set<std::string> ids;
  const std::string root = JoinPath(state_dir, "attempts");
  const auto names = ListDir(root);
  if (!names.ok()) return ids;  // none yet
  for (const std::string& name : *names) {
    const attempt::AttemptDir dir(JoinPath(root, name));
    const auto process = dir.ReadPid();
    if (!process.ok() || !ProcessAlive(*process)) continue;
    if (const auto spec = dir.ReadSpec(); spec.ok()) ids.insert(spec->device_id());
  }
  return ids;
}

// gpus.json: by GpuSpeedKey what was measured, by id the bytes that were offered last.
class GpuCache {
 public:
  explicit GpuCache(const std::string& state_dir) : cache_(JoinPath(state_dir, "gpus.json")) {}

  // `or_earlier`: what an earlier version measured, without the memory's rate, will do.
  bool FillSpeed(wire::ProbedGpu* gpu, bool or_earlier) {
    const auto* known = cache_.Find(wire::GpuSpeedKey(*gpu));
    if (known == nullptr || !known->is_array()) return false;
    const std::array<double*, 3> rates = {&gpu->gemm_flops, &gpu->copy_bytes_per_second, &gpu->memory_bytes_per_second};
    if (known->size() != rates.size() && !(or_earlier && known->size() == 2)) return false;
    for (size_t i = 0; i < known->size(); ++i) {
      if (!known->at(i).is_number()) return false;
      *rates[i] = known->at(i).get<double>();
      if (!(*rates[i] > 0)) return false;
    }
    return true;
  }
  void PutSpeed(const wire::ProbedGpu& gpu) {
    cache_.Put(wire::GpuSpeedKey(gpu), {gpu.gemm_flops, gpu.copy_bytes_per_second, gpu.memory_bytes_per_second});
  }
  // 0 = not known.
  int64_t BytesOffered(const std::string& id) {
    const auto* known = cache_.Find(id);
    return known != nullptr && known->is_number_integer() ? known->get<int64_t>() : 0;
  }
  void PutBytesOffered(const std::string& id, int64_t bytes) {
    if (BytesOffered(id) != bytes) cache_.Put(id, bytes);
  }
  absl::Status Save() { return cache_.Save(); }

 private:
  StateCache cache_;
};

std::string NameOf(const wire::ProbedGpu& gpu) { return gpu.name + " (" + gpu.id + ")"; }

// All of it, or where others hold some the whole GiB that are left: so that its class does not change by the megabyte.
int64_t BytesToOffer(const wire::ProbedGpu& gpu, bool own_trainers, GpuCache* cache, const Log& log) {
  if (own_trainers) {
    if (const int64_t known = std::min(cache->BytesOffered(gpu.id), gpu.memory_bytes); known > 0) return known;
  }
  const int64_t others = wire::GpuBytesOfOthers(gpu);
  const int64_t bytes = others == 0 ? gpu.memory_bytes : (gpu.memory_bytes - others) / kGiB * kGiB;
  if (others > 0) {
    log("GPU " + NameOf(gpu) + ": other programs hold " + FormatBytes(others) + " of its " +
        FormatBytes(gpu.memory_bytes) + "; " +
        (bytes >= kLeastGpuBytes ? "the other " + FormatBytes(bytes) + " are offered" : "it is left out") +
        ". nvidia-smi names them; end them and restart longhaul-worker");
  }
  return bytes;
}

std::vector<wire::ProbedGpu> Usable(const wire::DeviceProbe& probe, const Log& log) {
  if (!probe.problem.empty()) log("no GPU: " + probe.problem);
  std::vector<wire::ProbedGpu> usable;
  for (const wire::ProbedGpu& gpu : probe.gpus) {
    if (gpu.problem.empty()) {
      usable.push_back(gpu);
    } else {
      log("GPU " + NameOf(gpu) + " is left out: " + gpu.problem);
    }
  }
  return usable;
}

// The usable GPUs with their speed, measured where it is not known. A GPU that a trainer of ours is on (`own`) is
// slower than it will be: what was known of it stays, and what is measured of it is not kept.
absl::StatusOr<std::vector<wire::ProbedGpu>> FindGpus(const InventoryOptions& options, const std::set<std::string>& own,
                                                      const Log& log, const Cancelled& cancelled, GpuCache* cache) {
  LH_ASSIGN_OR_RETURN(const wire::DeviceProbe listed, RunProbe(options, "list", cancelled));
  std::vector<wire::ProbedGpu> gpus = Usable(listed, log);
  bool all_known = true;
  for (wire::ProbedGpu& gpu : gpus) all_known = cache->FillSpeed(&gpu, own.contains(gpu.id)) && all_known;
  if (all_known) return gpus;
  LH_ASSIGN_OR_RETURN(const wire::DeviceProbe measured, RunProbe(options, "measure", cancelled));
  gpus = Usable(measured, log);
  for (wire::ProbedGpu& gpu : gpus) {
    if (own.contains(gpu.id)) {
      cache->FillSpeed(&gpu, true);
      continue;
    }
    cache->PutSpeed(gpu);
    log("GPU " + NameOf(gpu) + ": measured " + std::to_string(static_cast<int64_t>(gpu.gemm_flops / 1e12)) +
        " TFLOP/s, " + FormatBytes(static_cast<int64_t>(gpu.copy_bytes_per_second)) + "/s from the host, " +
        FormatBytes(static_cast<int64_t>(gpu.memory_bytes_per_second)) + "/s of its memory");
  }
  return gpus;
}

}  // namespace

absl::Status AddGpus(const InventoryOptions& options, const Log& log, const Cancelled& cancelled,
                     v1::WorkerInventory* inventory) {
  if (options.trainer_path.empty()) return absl::OkStatus();
  GpuCache cache(options.state_dir);
  const std::set<std::string> own = GpusOfOwnTrainers(options.state_dir);
  const auto gpus = FindGpus(options, own, log, cancelled, &cache);
  if (absl::IsCancelled(gpus.status())) return gpus.status();
  if (!gpus.ok()) {
    log("no GPU: `" + options.trainer_path + " --devices` " + std::string(gpus.status().message()));
    return absl::OkStatus();
  }
  // Each GPU's attempt and one on the CPU can run beside each other where there are threads enough.
  const int shares = static_cast<int>(gpus->size()) + 1;
  const wire::GpuHost host{inventory->devices(0).facts().host_bytes(), inventory->disk_bytes_total(),
                           std::clamp(inventory->cpu_threads_total() / shares, 1, kMostGpuThreads)};
  for (const wire::ProbedGpu& gpu : *gpus) {
    const int64_t bytes = BytesToOffer(gpu, own.contains(gpu.id), &cache, log);
    if (bytes < kLeastGpuBytes) continue;
    cache.PutBytesOffered(gpu.id, bytes);
    v1::Device* const device = inventory->add_devices();
    device->set_id(gpu.id);
    *device->mutable_facts() = wire::ToProto(wire::FactsOfGpu(gpu, bytes, host));
  }
  if (const absl::Status saved = cache.Save(); !saved.ok()) log(std::string(saved.message()));
  return absl::OkStatus();
}

}  // namespace longhaul::agent
