#include "worker/agent/inventory.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kernels/exec.h"
#include "model/device_facts.h"
#include "nlohmann/json.hpp"
#include "wire/device_probe.h"
#include "wire/model_values.h"
#include "worker/agent/gpu_inventory.h"
#include "worker/agent/host_memory.h"
#include "worker/agent/model_watch.h"
#include "worker/agent/state_cache.h"
#include "worker/data/tokenizer.h"
#include "worker/formats/model_source.h"

namespace longhaul::agent {
namespace {

using Log = std::function<void(const std::string&)>;
using Cancelled = std::function<bool()>;

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool IsModelFolder(const std::string& path) {
  if (!IsDirectory(path)) return false;
  if (FileExists(JoinPath(path, "config.json"))) return true;
  const auto names = ListDir(path);
  return names.ok() &&
         std::count_if(names->begin(), names->end(), [](const auto& n) { return EndsWith(n, ".gguf"); }) == 1;
}

std::string NameOf(const std::string& path) {
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.back() == '/') trimmed.pop_back();
  std::string name = trimmed.substr(trimmed.rfind('/') + 1);
  if (EndsWith(name, ".gguf")) name.resize(name.size() - 5);
  return name;
}

absl::StatusOr<std::vector<std::string>> FindModels(const std::string& dir) {
  if (!FileExists(dir)) {
    return WithAdvice(MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                                "--models is '" + dir + "'; there is no such file or folder"),
                      "give a .gguf file, a Hugging Face model folder, or a folder of them");
  }
  // A folder of several .gguf files is a folder of models; one with a config.json, or a file, is a model.
  if (!IsDirectory(dir) || FileExists(JoinPath(dir, "config.json"))) return std::vector<std::string>{dir};
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(dir));
  std::vector<std::string> found;
  for (const std::string& name : names) {
    const std::string path = JoinPath(dir, name);
    if ((EndsWith(name, ".gguf") && !IsDirectory(path)) || IsModelFolder(path)) found.push_back(path);
  }
  return found;
}

// The type that most of the weights' bytes have: "gguf:Q4_1", "safetensors:BF16".
std::string StorageOf(const formats::ModelSource& source) {
  std::map<std::string, int64_t> bytes;
  for (const formats::StoredTensor& tensor : source.tensors()) bytes[StorageTypeName(tensor.type)] += tensor.bytes;
  std::string main;
  for (const auto& [name, size] : bytes) {
    if (main.empty() || size > bytes[main]) main = name;
  }
  return std::string(source.gguf() != nullptr ? "gguf:" : "safetensors:") + main;
}

// What one taking reads of models that are new here.
struct NewModels {
  bool Takes(int64_t bytes) {
    if (bytes > bytes_left && !first_anyway) return false;
    bytes_left -= bytes;
    first_anyway = false;
    return true;
  }

  int64_t bytes_left = 0;
  bool later = false;         // than the start: nobody is there to be told that one is to be renamed
  bool first_anyway = false;  // the next one is read however large it is
  UnreadModels left;
};

// None where its digest is left for another time.
absl::StatusOr<std::optional<OfferedModel>> Describe(const std::string& path, StateCache* cache, NewModels* fresh,
                                                     const Log& log, const Cancelled& cancelled) {
  const std::string stamp = ModelStamp(path);  // of before it is read
  LH_ASSIGN_OR_RETURN(const formats::ModelSource source, formats::ModelSource::Open(path));
  LH_ASSIGN_OR_RETURN(const std::string fingerprint, source.Fingerprint());
  auto tokenizer = source.gguf() != nullptr ? data::Tokenizer::FromGguf(*source.gguf())
                                            : data::Tokenizer::FromHuggingFaceFolder(source.folder());
  if (!tokenizer.ok()) return tokenizer.status();
  v1::Model model;
  model.set_name(NameOf(path));
  *model.mutable_shape() = wire::ToProto(source.shape());
  model.set_tokenizer_digest(tokenizer->digest());
  model.set_size_bytes(source.bytes());
  model.set_storage(StorageOf(source));
  model.set_has_chat_template(!tokenizer->chat_template().empty());
  if (const auto* cached = cache->Find(fingerprint);
      cached != nullptr && cached->is_string() && IsSha256Hex(cached->get<std::string>())) {
    model.set_digest(cached->get<std::string>());
    return OfferedModel{std::move(model), LocalModel{path, fingerprint, stamp, source.DigestFiles()}};
  }
  if (!fresh->Takes(source.bytes())) {
    fresh->left.insert(path);
    return std::optional<OfferedModel>();
  }
  log("reading " + path + " (" + FormatBytes(source.bytes()) + ") for its digest");
  LH_ASSIGN_OR_RETURN(*model.mutable_digest(), source.ComputeDigest(cancelled));
  // What was read is what the fingerprint names, or it is nobody's digest.
  LH_ASSIGN_OR_RETURN(const std::string afterwards, source.Fingerprint());
  if (afterwards != fingerprint) {
    return MakeError(absl::StatusCode::kUnavailable, "MODEL_CHANGED", path + " was written to while it was read");
  }
  cache->Put(fingerprint, model.digest());
  return OfferedModel{std::move(model), LocalModel{path, fingerprint, stamp, source.DigestFiles()}};
}

// None where the files that the digest was taken of are others now, or there was no model at `path`.
std::optional<OfferedModel> AsItWas(const std::string& path, const ModelOffer& before) {
  const auto was = std::find_if(before.begin(), before.end(), [&](const auto& one) { return one.local.path == path; });
  if (was == before.end()) return std::nullopt;
  OfferedModel model = *was;
  const std::string stamp = ModelStamp(path);
  if (stamp == model.local.stamp) return model;
  // Opened, for one more file may make it another model.
  const absl::StatusOr<formats::ModelSource> source = formats::ModelSource::Open(path);
  if (!source.ok() || source->Fingerprint().value_or("") != model.local.fingerprint) return std::nullopt;
  model.local.stamp = stamp;
  return model;
}

double MeasuredFlops(const InventoryOptions& options, const kernels::CpuFacts& cpu, int threads, const Log& log) {
  StateCache cache(JoinPath(options.state_dir, "device.json"));
  const std::string key = cpu.model_name + "|" + cpu.isa + "|" + cpu.gemm_library + "|" + std::to_string(threads);
  if (const auto* cached = cache.Find(key); cached != nullptr && cached->is_number() && cached->get<double>() > 0) {
    return cached->get<double>();
  }
  const double flops =
      kernels::MeasureGemmFlops(threads, cpu.has_bf16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32);
  log("measured " + std::to_string(static_cast<int64_t>(flops / 1e9)) + " GFLOP/s on " + std::to_string(threads) +
      " threads");
  cache.Put(key, flops);
  if (const absl::Status saved = cache.Save(); !saved.ok()) log(std::string(saved.message()));
  return flops;
}

// A class is what has the same plans and gives the same bits: instruction set, threads and RAM, and, as a short hash,
// the processor and the GEMM library, whose blocking follows its caches.
std::string CpuDeviceClass(const kernels::CpuFacts& cpu, int threads, int64_t host_bytes) {
  return "cpu-" + cpu.isa + "-" + std::to_string(threads) + "t-" + wire::ClassBytes(host_bytes) + "-" +
         Sha256Hex(cpu.model_name + "\n" + cpu.gemm_library).substr(0, 6);
}

absl::Status AddCpu(const InventoryOptions& options, const Log& log, Inventory* inventory) {
  const int threads_there = HostCpuThreads();
  const int threads = options.cpu_threads == 0 ? threads_there : options.cpu_threads;
  if (threads < 1 || threads > threads_there) {
    return InvalidField("--cpu-threads",
                        "is " + std::to_string(threads) + "; this machine gives 1 to " + std::to_string(threads_there));
  }
  const int64_t total = HostMemTotalBytes();
  if (options.host_bytes < 0 || options.host_bytes > total) {
    return InvalidField("--host-bytes",
                        "is " + FormatBytes(options.host_bytes) + "; this machine has " + FormatBytes(total));
  }
  // Plans are made for what the machine has, whoever uses it now; what is given out is what is there.
  const int64_t plannable = options.host_bytes > 0 ? options.host_bytes : PlannableHostBytes(total);
  const int64_t host_bytes = options.host_bytes > 0 ? options.host_bytes
                                                    : OfferedHostBytes(plannable, HostMemAvailableBytes(),
                                                                       OwnTrainersBytes(options.state_dir));
  LH_ASSIGN_OR_RETURN(const int64_t disk_bytes, DiskFreeBytes(options.state_dir));
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  DeviceFacts facts;
  facts.device_class = CpuDeviceClass(cpu, threads, plannable);
  facts.kind = DeviceKind::kCpu;
  facts.host_bytes = plannable;
  facts.disk_bytes = disk_bytes;
  facts.cpu_threads = threads;
  facts.isa = cpu.isa;
  facts.has_bf16 = cpu.has_bf16;
  facts.gemm_flops = MeasuredFlops(options, cpu, threads, log);
  v1::Device* device = inventory->proto.add_devices();
  device->set_id("cpu-0");
  *device->mutable_facts() = wire::ToProto(facts);
  inventory->proto.set_host_bytes_total(host_bytes);
  inventory->proto.set_disk_bytes_total(disk_bytes);
  inventory->proto.set_cpu_threads_total(threads);
  return absl::OkStatus();
}

absl::StatusOr<ModelOffer> TakeSome(const InventoryOptions& options, const ModelOffer& before,
                                    const std::set<std::string>& changing, NewModels* fresh, const Log& log,
                                    const Cancelled& cancelled) {
  ModelOffer offer;
  StateCache cache(JoinPath(options.state_dir, "models.json"));
  std::map<std::string, std::string> path_of_name;
  for (const std::string& dir : options.model_dirs) {
    LH_ASSIGN_OR_RETURN(const std::vector<std::string> paths, FindModels(dir));
    for (const std::string& path : paths) {
      std::optional<OfferedModel> model = AsItWas(path, before);
      if (!model.has_value()) {
        if (changing.count(path) != 0) continue;
        auto described = Describe(path, &cache, fresh, log, cancelled);
        if (absl::IsCancelled(described.status())) return described.status();
        if (!described.ok()) {
          log("model " + path + " is left out: " + std::string(described.status().message()));
          continue;
        }
        LH_RETURN_IF_ERROR(cache.SaveAll());  // an agent that is killed over the next one reads this one no more
        if (!described->has_value()) continue;
        model = **std::move(described);
      } else if (cache.Find(model->local.fingerprint) == nullptr) {
        cache.Put(model->local.fingerprint, model->proto.digest());  // what is not asked for now is not kept
      }
      const auto [at, is_new] = path_of_name.emplace(model->proto.name(), path);
      if (!is_new) {
        const std::string problem =
            "two models are called " + model->proto.name() + ": " + at->second + " and " + path + "; rename one";
        if (!fresh->later) return MakeError(absl::StatusCode::kInvalidArgument, "MODEL_TWICE", problem);
        log("model " + path + " is left out: " + problem);
        continue;
      }
      offer.push_back(*std::move(model));
    }
  }
  LH_RETURN_IF_ERROR(cache.Save());
  if (offer.size() > static_cast<size_t>(limits::kMaxModelsPerWorker)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "LIMIT_EXCEEDED",
                     std::to_string(offer.size()) + " models; at most " + std::to_string(limits::kMaxModelsPerWorker));
  }
  return offer;
}

}  // namespace

absl::StatusOr<ModelOffer> TakeModels(const InventoryOptions& options, const ModelOffer& before,
                                      const std::set<std::string>& changing, const Log& log, const Cancelled& cancelled,
                                      UnreadModels* unread) {
  NewModels fresh;
  fresh.bytes_left = unread == nullptr ? std::numeric_limits<int64_t>::max() : options.new_model_bytes;
  fresh.later = fresh.first_anyway = true;
  auto offer = TakeSome(options, before, changing, &fresh, log, cancelled);
  if (unread != nullptr) *unread = std::move(fresh.left);
  return offer;
}

absl::StatusOr<Inventory> TakeInventory(const InventoryOptions& options, const Log& log, const Cancelled& cancelled) {
  Inventory inventory;
  inventory.proto.set_host_name(HostName());
  // What is wrong with the flags is said before anything is measured or read.
  for (const std::string& dir : options.model_dirs) LH_RETURN_IF_ERROR(FindModels(dir).status());
  LH_RETURN_IF_ERROR(AddCpu(options, log, &inventory));
  LH_RETURN_IF_ERROR(AddGpus(options, log, cancelled, &inventory.proto));
  NewModels fresh;
  fresh.bytes_left = options.new_model_bytes;
  LH_ASSIGN_OR_RETURN(inventory.models, TakeSome(options, {}, {}, &fresh, log, cancelled));
  inventory.unread = std::move(fresh.left);
  for (const OfferedModel& model : inventory.models) *inventory.proto.add_models() = model.proto;
  return inventory;
}

}  // namespace longhaul::agent
