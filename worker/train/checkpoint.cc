#include "worker/train/checkpoint.h"

#include <cmath>
#include <cstring>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "model/json_fields.h"
#include "nlohmann/json.hpp"
#include "worker/formats/safetensors.h"

namespace longhaul::train {
namespace {

using nlohmann::json;

constexpr char kStateFile[] = "state.json";
constexpr char kArraysFile[] = "adapter_state.safetensors";
constexpr int64_t kMaxStateBytes = 1 << 16;
constexpr int64_t kMany = int64_t{1} << 52;

absl::Status Invalid(const std::string& file, const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_CHECKPOINT", file + ": " + what);
}

json OptionalToJson(const std::optional<double>& value) { return value.has_value() ? json(*value) : json(nullptr); }

std::string StateToJson(const TrainerState& s, const CheckpointIdentity& identity) {
  const json object = {{"version", kCheckpointVersion},
                       {"step", s.step},
                       {"total_steps", s.total_steps},
                       {"adam_steps", s.adam_steps},
                       {"trained_tokens", s.trained_tokens},
                       {"skipped_updates", s.skipped_updates},
                       {"skipped_in_a_row", s.skipped_in_a_row},
                       {"training_done", s.training_done},
                       {"last_loss", std::isfinite(s.last_loss) ? json(s.last_loss) : json(nullptr)},
                       {"eval_before", OptionalToJson(s.eval_before)},
                       {"eval_last", OptionalToJson(s.eval_last)},
                       {"eval_last_step", s.eval_last_step},
                       {"eval_best", OptionalToJson(s.eval_best)},
                       {"eval_pending", s.eval_pending},
                       {"train_seconds", s.train_seconds},
                       {"plan_signature", identity.plan_signature},
                       {"made_with", identity.made_with},
                       {"run_signature", identity.run_signature}};
  return object.dump(2) + "\n";
}

void ReadOptional(JsonFields* fields, const char* key, std::optional<double>* out) {
  if (fields->Find(key) == nullptr) return;
  double value = 0;
  fields->Double(key, -1e300, 1e300, &value);
  *out = value;
}

absl::StatusOr<LoadedCheckpoint> StateFromJson(const std::string& text, const std::string& file) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) return Invalid(file, "is not valid JSON");
  LoadedCheckpoint loaded;
  TrainerState& s = loaded.state;
  JsonFields fields(object, file);
  int64_t version = 0;
  fields.Int("version", kCheckpointVersion, kCheckpointVersion, &version);
  fields.Int("total_steps", 1, limits::kMaxSteps, &s.total_steps);
  fields.Int("step", 0, s.total_steps, &s.step);
  fields.Int("adam_steps", 0, s.step, &s.adam_steps);
  fields.Int("trained_tokens", 0, kMany, &s.trained_tokens);
  fields.Int("skipped_updates", 0, s.step, &s.skipped_updates);
  fields.Int("skipped_in_a_row", 0, s.step, &s.skipped_in_a_row);
  fields.Bool("training_done", &s.training_done);
  fields.OptionalDouble("last_loss", -1e300, 1e300, &s.last_loss);
  ReadOptional(&fields, "eval_before", &s.eval_before);
  ReadOptional(&fields, "eval_last", &s.eval_last);
  fields.Int("eval_last_step", -1, s.step, &s.eval_last_step);
  ReadOptional(&fields, "eval_best", &s.eval_best);
  if (fields.Find("eval_pending") != nullptr) fields.Bool("eval_pending", &s.eval_pending);  // later than version 1
  fields.Double("train_seconds", 0, 1e12, &s.train_seconds);
  fields.String("plan_signature", 256, &loaded.identity.plan_signature);
  fields.String("made_with", limits::kMaxCheckpointTextBytes, &loaded.identity.made_with);
  fields.String("run_signature", 256, &loaded.identity.run_signature);
  if (!fields.status().ok()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_CHECKPOINT", std::string(fields.status().message()));
  }
  return loaded;
}

formats::StorageType ArrayType(const Adapter& adapter) {
  return adapter.master().dtype == kernels::DType::kF64 ? formats::StorageType::kF64 : formats::StorageType::kF32;
}

absl::Status ReadArray(const formats::SafetensorsSet& file, const std::string& path, const char* name,
                       formats::StorageType type, const kernels::Tensor& to) {
  const formats::TensorView* view = file.Find(name);
  if (view == nullptr) return Invalid(path, std::string("has no tensor \"") + name + "\"");
  if (view->entry->type != type || view->entry->shape != std::vector<int64_t>{to.cols}) {
    return Invalid(path, std::string("tensor \"") + name + "\" is not " + formats::StorageTypeName(type) + " [" +
                             std::to_string(to.cols) + "]");
  }
  std::memcpy(to.data, view->data, static_cast<size_t>(view->bytes()));
  return absl::OkStatus();
}

// Puts the whole folder `partial` in the place of `folder`. A tree is not removed at once: what is there goes aside
// first, so that under its name there is always a whole one or none.
absl::Status Replace(const std::string& partial, const std::string& folder) {
  const std::string replaced = folder + ".replaced";
  const bool replaces = FileExists(folder);
  if (replaces) LH_RETURN_IF_ERROR(RemoveTree(replaced));
  absl::Status status = replaces ? RenameFile(folder, replaced) : absl::OkStatus();
  if (status.ok()) status = RenameFile(partial, folder);
  // A rename that was made and not synced has failed, too.
  if (!status.ok() && replaces && !FileExists(folder)) RenameFile(replaced, folder).IgnoreError();
  LH_RETURN_IF_ERROR(status);
  return RemoveTree(replaced);
}

}  // namespace

const std::vector<std::string>& CheckpointFiles() {
  static const std::vector<std::string> files = {kArraysFile, kStateFile};
  return files;
}

absl::Status WriteCheckpoint(const std::string& folder, const TrainerState& state, const CheckpointIdentity& identity,
                             const Adapter& adapter) {
  const std::string partial = folder + ".partial";
  const auto write = [&]() -> absl::Status {
    LH_RETURN_IF_ERROR(RemoveTree(partial));
    LH_RETURN_IF_ERROR(CreateDirs(partial));
    formats::SafetensorsWriter writer;
    const formats::StorageType type = ArrayType(adapter);
    adapter.Download();
    writer.Add({"master", type, {adapter.params()}, adapter.host().master.data});
    writer.Add({"moment1", type, {adapter.params()}, adapter.host().moment1.data});
    writer.Add({"moment2", type, {adapter.params()}, adapter.host().moment2.data});
    LH_RETURN_IF_ERROR(writer.WriteFile(JoinPath(partial, kArraysFile)));
    LH_RETURN_IF_ERROR(Failpoint("checkpoint_between_files"));
    LH_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(partial, kStateFile), StateToJson(state, identity)));
    LH_RETURN_IF_ERROR(SyncDir(partial));
    return Replace(partial, folder);
  };
  const absl::Status status = write();
  if (!status.ok()) RemoveTree(partial).IgnoreError();
  return Annotate(status, "checkpoint " + folder);
}

absl::StatusOr<LoadedCheckpoint> ReadCheckpoint(const std::string& folder, const Adapter& adapter) {
  const std::string state_path = JoinPath(folder, kStateFile);
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(state_path, kMaxStateBytes));
  LH_ASSIGN_OR_RETURN(LoadedCheckpoint loaded, StateFromJson(text, state_path));
  const std::string arrays_path = JoinPath(folder, kArraysFile);
  LH_ASSIGN_OR_RETURN(const formats::SafetensorsSet file, formats::SafetensorsSet::OpenFile(arrays_path));
  if (file.tensors().size() != 3) return Invalid(arrays_path, "must hold three tensors");
  const formats::StorageType type = ArrayType(adapter);
  LH_RETURN_IF_ERROR(ReadArray(file, arrays_path, "master", type, adapter.host().master));
  LH_RETURN_IF_ERROR(ReadArray(file, arrays_path, "moment1", type, adapter.host().moment1));
  LH_RETURN_IF_ERROR(ReadArray(file, arrays_path, "moment2", type, adapter.host().moment2));
  adapter.Upload();
  return loaded;
}

}  // namespace longhaul::train
