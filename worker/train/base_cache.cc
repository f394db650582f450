#include "worker/train/base_cache.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "base/env.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kernels/exec.h"

namespace longhaul::train {
namespace {

constexpr uint64_t kMagic = 0x3130455341424c48;  // "HLBASE01"
constexpr int64_t kPieceBytes = 1 << 20;         // copied and summed while it is in a core's cache
// What a base is made of. Positions' rotations are not among them: they depend on the job's length.
constexpr const char* kRegions[] = {"weights.layers", "weights.head", "weights.embedding", "weights.norms"};
constexpr char kSuffix[] = ".base";
constexpr char kTemporary[] = ".tmp";

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Everything that the bytes of the regions depend on.
std::string Identity(const std::string& model_digest, const EngineMemory& memory) {
  const MemoryPlan& plan = memory.plan();
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  std::string text = "model " + model_digest + "; plan " + std::to_string(plan.version) + "; compute " +
                     ComputeTypeName(plan.train.compute) + "; base " + BaseWeightsName(plan.train.base) + "; " +
                     (plan.choices.packed_weights ? "packed" : "plain") + "; isa " + plan.choices.isa + "; cpu " +
                     cpu.model_name + "; gemm " + cpu.gemm_library;
  for (const char* region : kRegions) {
    text +=
        std::string("; ") + region + " " + std::to_string(memory.Has(region) ? memory.arena().RegionBytes(region) : 0);
  }
  return Sha256Hex(text);
}

// The end of the file after `pieces` checksums.
std::string Footer(const std::vector<uint32_t>& sums, int64_t payload) {
  std::string footer(sums.size() * sizeof(uint32_t) + 2 * sizeof(uint64_t), '\0');
  std::memcpy(footer.data(), sums.data(), sums.size() * sizeof(uint32_t));
  const uint64_t size = static_cast<uint64_t>(payload);
  std::memcpy(footer.data() + footer.size() - 16, &size, 8);
  std::memcpy(footer.data() + footer.size() - 8, &kMagic, 8);
  return footer;
}

// False where there can be none.
bool MakeRoom(const std::string& folder, int64_t bytes) {
  const auto names = ListDir(folder);
  const auto free_bytes = DiskFreeBytes(folder);
  if (!names.ok() || !free_bytes.ok()) return false;
  std::vector<CachedBase> bases;
  for (const std::string& name : *names) {
    const std::string path = JoinPath(folder, name);
    // Under the lock nobody writes: a temporary file is what a killed process left.
    if (EndsWith(name, kTemporary)) RemoveFile(path).IgnoreError();
    if (!EndsWith(name, kSuffix)) continue;
    bases.push_back({path, FileSize(path).value_or(0), FileModifiedNanos(path).value_or(0)});
  }
  const auto evicted = BasesToEvict(std::move(bases), bytes, *free_bytes);
  if (!evicted.has_value()) return false;
  for (const CachedBase& base : *evicted) RemoveFile(base.path).IgnoreError();
  return true;
}

}  // namespace

std::optional<std::vector<CachedBase>> BasesToEvict(std::vector<CachedBase> bases, int64_t bytes, int64_t free_bytes) {
  std::sort(bases.begin(), bases.end(),
            [](const CachedBase& a, const CachedBase& b) { return a.used_nanos < b.used_nanos; });
  int64_t total = bytes;
  for (const CachedBase& base : bases) total += base.bytes;
  size_t evicted = 0;
  for (; evicted < bases.size() && total > limits::kMaxBaseCacheBytes; ++evicted) {
    total -= bases[evicted].bytes;
    free_bytes += bases[evicted].bytes;
  }
  if (total > limits::kMaxBaseCacheBytes || free_bytes < bytes + limits::kMinBaseCacheFreeBytes) return std::nullopt;
  bases.resize(evicted);
  return bases;
}

BaseCache::BaseCache(std::string folder, const std::string& model_digest, const EngineMemory& memory)
    : folder_(std::move(folder)) {
  // Without the model's digest there is nothing to know it by again.
  if (folder_.empty() || model_digest.empty()) return;
  path_ = JoinPath(folder_, Identity(model_digest, memory) + kSuffix);
  for (const char* region : kRegions) {
    if (!memory.Has(region)) continue;
    spans_.push_back({static_cast<const uint8_t*>(memory.arena().Get(region)), memory.arena().RegionBytes(region)});
  }
}

BaseCache::~BaseCache() = default;

int64_t BaseCache::PayloadBytes() const {
  int64_t bytes = 0;
  for (const Span& span : spans_) bytes += span.bytes;
  return bytes;
}

bool BaseCache::Load(const kernels::Exec& exec) const {
  if (path_.empty()) return false;
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path_);
  if (!file.ok()) return false;
  struct Piece {
    uint8_t* to;
    const uint8_t* from;
    int64_t bytes;
  };
  std::vector<Piece> pieces;
  const uint8_t* from = file->data();
  for (const Span& span : spans_) {
    for (int64_t at = 0; at < span.bytes; at += kPieceBytes) {
      const int64_t bytes = std::min(kPieceBytes, span.bytes - at);
      pieces.push_back({const_cast<uint8_t*>(span.data) + at, from, bytes});
      from += bytes;
    }
  }
  const int64_t payload = PayloadBytes();
  const int64_t count = static_cast<int64_t>(pieces.size());
  const std::string zeros = Footer(std::vector<uint32_t>(pieces.size()), payload);
  std::atomic<bool> good = static_cast<int64_t>(file->size()) == payload + static_cast<int64_t>(zeros.size()) &&
                           std::memcmp(file->data() + file->size() - 16, zeros.data() + zeros.size() - 16, 16) == 0;
  if (good) {
    const uint8_t* const sums = file->data() + payload;
#pragma omp parallel for schedule(static) num_threads(exec.threads())
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      std::memcpy(piece.to, piece.from, static_cast<size_t>(piece.bytes));
      uint32_t expected = 0;
      std::memcpy(&expected, sums + i * 4, 4);
      const std::string_view copied(reinterpret_cast<const char*>(piece.to), static_cast<size_t>(piece.bytes));
      if (Crc32c(copied) != expected) good = false;
      file->Release(piece.from, static_cast<size_t>(piece.bytes));  // or the base would be there twice
    }
  }
  if (good) {
    TouchFile(path_).IgnoreError();
  } else {
    RemoveFile(path_).IgnoreError();
  }
  return good;
}

absl::Status BaseCache::Write(std::stop_token stop) const {
  LH_RETURN_IF_ERROR(CreateDirs(folder_));
  LH_ASSIGN_OR_RETURN(const FileLock lock, FileLock::Acquire(JoinPath(folder_, "lock")));
  if (FileExists(path_)) return absl::OkStatus();
  if (!MakeRoom(folder_, PayloadBytes())) return absl::OkStatus();
  const std::string temporary = path_ + kTemporary;
  absl::Status status = WriteFile(temporary, stop);
  if (status.ok() && stop.stop_requested()) return RemoveFile(temporary);
  if (status.ok()) status = RenameFile(temporary, path_);
  if (!status.ok()) RemoveFile(temporary).IgnoreError();
  return status;
}

// A part of it where `stop` says so.
absl::Status BaseCache::WriteFile(const std::string& path, std::stop_token stop) const {
  LH_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, /*truncate_to=*/0));
  std::vector<uint32_t> sums;
  for (const Span& span : spans_) {
    for (int64_t at = 0; at < span.bytes; at += kPieceBytes) {
      if (stop.stop_requested()) return absl::OkStatus();
      const std::string_view piece(reinterpret_cast<const char*>(span.data) + at,
                                   static_cast<size_t>(std::min(kPieceBytes, span.bytes - at)));
      sums.push_back(Crc32c(piece));
      LH_RETURN_IF_ERROR(file.Append(piece));
    }
  }
  LH_RETURN_IF_ERROR(file.Append(Footer(sums, PayloadBytes())));
  return file.Sync();
}

void BaseCache::Store() {
  if (path_.empty()) return;
  // A cache that cannot be written costs the next start its time, nothing else.
  writer_ = std::jthread([this](std::stop_token stop) { Write(stop).IgnoreError(); });
}

void BaseCache::Finish() {
  if (writer_.joinable()) writer_.join();
}

}  // namespace longhaul::train
