#include "kernels/cuda/device_activity.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <type_traits>

#include "base/error.h"

namespace longhaul::kernels {

uint64_t UnionNanos(std::vector<std::pair<uint64_t, uint64_t>> spans) {
  std::sort(spans.begin(), spans.end());
  uint64_t sum = 0, end = 0;
  for (const auto& [first, last] : spans) {
    if (last <= end) continue;
    sum += last - std::max(first, end);
    end = last;
  }
  return sum;
}

namespace {

// What is used of CUPTI's interface, as cupti_activity.h of CUDA 13 has it: its header is not part of every toolkit.
using CuptiResult = int;  // CUptiResult; 0: done
enum CuptiKind : uint32_t { kCuptiMemcpy = 1, kCuptiMemset = 2, kCuptiKernel = 10 };
constexpr CuptiKind kCuptiKinds[] = {kCuptiMemcpy, kCuptiMemset, kCuptiKernel};
constexpr uint32_t kCuptiFlushForced = 1;
// The beginning of the records of all three (CUpti_ActivityMemcpy6, CUpti_ActivityMemset4, CUpti_ActivityKernel10 and
// their predecessors).
struct CuptiRecord {
  uint32_t kind;
  uint8_t other[12];
  uint64_t start_nanos, end_nanos;
};
static_assert(sizeof(CuptiRecord) == 32);
using CuptiRequested = void (*)(uint8_t** buffer, size_t* bytes, size_t* most_records);
using CuptiCompleted = void (*)(void* context, uint32_t stream, uint8_t* buffer, size_t bytes, size_t valid_bytes);

struct Cupti {
  CuptiResult (*register_callbacks)(CuptiRequested, CuptiCompleted) = nullptr;
  CuptiResult (*enable)(uint32_t kind) = nullptr;
  CuptiResult (*disable)(uint32_t kind) = nullptr;
  CuptiResult (*flush_all)(uint32_t flag) = nullptr;
  CuptiResult (*next_record)(uint8_t* buffer, size_t valid_bytes, void** record) = nullptr;
};

// The library is the process's, and its callbacks carry nothing of the caller's.
struct CuptiRecording {
  std::mutex mutex;
  Cupti cupti;
  std::vector<std::pair<uint64_t, uint64_t>> spans;  // guarded by mutex: buffers come on a thread of CUPTI's
};
CuptiRecording& CuptiNow() {
  static CuptiRecording& recording = *new CuptiRecording;
  return recording;
}

constexpr size_t kCuptiBufferBytes = size_t{4} << 20;
constexpr size_t kCuptiBufferAlignBytes = 8;

void CuptiBufferRequested(uint8_t** buffer, size_t* bytes, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kCuptiBufferAlignBytes, kCuptiBufferBytes));
  *bytes = *buffer == nullptr ? 0 : kCuptiBufferBytes;
  *most_records = 0;  // as many as there is room for
}

void CuptiBufferCompleted(void*, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
  CuptiRecording& recording = CuptiNow();
  const std::lock_guard<std::mutex> lock(recording.mutex);
  void* at = nullptr;
  while (valid_bytes > 0 && recording.cupti.next_record(buffer, valid_bytes, &at) == 0) {
    CuptiRecord record;
    std::memcpy(&record, at, sizeof record);
    if (std::find(std::begin(kCuptiKinds), std::end(kCuptiKinds), record.kind) == std::end(kCuptiKinds)) continue;
    if (record.end_nanos > record.start_nanos) recording.spans.emplace_back(record.start_nanos, record.end_nanos);
  }
  std::free(buffer);
}

absl::Status CuptiFailed(const char* call, CuptiResult result) {
  return MakeError(absl::StatusCode::kUnavailable, "CUPTI_FAILED",
                   std::string(call) + " returned " + std::to_string(result));
}

absl::Status LoadCupti(Cupti* cupti) {
  std::string errors;
  void* library = nullptr;
  for (const char* path : {"libcupti.so.13", "/usr/local/cuda/lib64/libcupti.so.13",
                           "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so.13"}) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    const char* const why = dlerror();
    errors += (errors.empty() ? "" : "; ") + std::string(why != nullptr ? why : path);
  }
  if (library == nullptr) {
    return MakeError(absl::StatusCode::kUnavailable, "CUPTI_MISSING",
                     "kernels are timed by CUPTI of CUDA 13, which was not found: " + errors);
  }
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_reference_t<decltype(*function)>>(dlsym(library, name));
    return *function != nullptr;
  };
  const bool complete = find("cuptiActivityRegisterCallbacks", &cupti->register_callbacks) &&
                        find("cuptiActivityEnable", &cupti->enable) && find("cuptiActivityDisable", &cupti->disable) &&
                        find("cuptiActivityFlushAll", &cupti->flush_all) &&
                        find("cuptiActivityGetNextRecord", &cupti->next_record);
  if (complete) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "CUPTI_MISSING", "libcupti.so.13 lacks functions of its interface");
}

class CuptiActivity final : public DeviceActivity {
 public:
  ~CuptiActivity() override { Stop(); }
  absl::Status Start() {
    const Cupti& cupti = CuptiNow().cupti;
    if (const CuptiResult r = cupti.register_callbacks(CuptiBufferRequested, CuptiBufferCompleted); r != 0) {
      return CuptiFailed("cuptiActivityRegisterCallbacks", r);
    }
    for (const CuptiKind kind : kCuptiKinds) {
      if (const CuptiResult r = cupti.enable(kind); r != 0) return CuptiFailed("cuptiActivityEnable", r);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<Sum> End() override {
    const CuptiResult flushed = CuptiNow().cupti.flush_all(kCuptiFlushForced);
    Stop();
    if (flushed != 0) return CuptiFailed("cuptiActivityFlushAll", flushed);
    CuptiRecording& recording = CuptiNow();
    const std::lock_guard<std::mutex> lock(recording.mutex);
    // Nothing to divide by, and no caller lets the device do nothing.
    if (recording.spans.empty()) {
      return MakeError(absl::StatusCode::kUnavailable, "CUPTI_FAILED", "CUPTI recorded no kernel, copy or fill");
    }
    Sum sum;
    sum.records = static_cast<int64_t>(recording.spans.size());
    uint64_t begin = std::numeric_limits<uint64_t>::max(), end = 0;
    for (const auto& [first, last] : recording.spans) {
      begin = std::min(begin, first);
      end = std::max(end, last);
    }
    if (end > begin) sum.all_seconds = static_cast<double>(end - begin) * 1e-9;
    sum.seconds = static_cast<double>(UnionNanos(std::move(recording.spans))) * 1e-9;
    recording.spans.clear();
    return sum;
  }

 private:
  void Stop() {
    for (const CuptiKind kind : kCuptiKinds) CuptiNow().cupti.disable(kind);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceActivity>> DeviceActivity::Begin() {
  Cupti& cupti = CuptiNow().cupti;
  if (cupti.next_record == nullptr) {
    if (absl::Status status = LoadCupti(&cupti); !status.ok()) return status;
  }
  auto activity = std::make_unique<CuptiActivity>();
  if (absl::Status status = activity->Start(); !status.ok()) return status;
  return activity;
}

}  // namespace longhaul::kernels
