#include "server/rpc/convert_worker.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/rpc/convert.h"
#include "server/rpc/enum_numbers.h"
#include "wire/model_values.h"

namespace longhaul::server {
namespace {

constexpr double kMaxStepSeconds = 1e7;  // of an update; a longer one is told as that

std::string At(const std::string& field, int index) { return field + "[" + std::to_string(index) + "]"; }

absl::Status CheckCount(const std::string& field, int count, int most) {
  if (count <= most) return absl::OkStatus();
  return InvalidField(field, "has " + std::to_string(count) + " elements; at most " + std::to_string(most));
}

absl::Status CheckName(const std::string& field, const std::string& name, size_t most_bytes) {
  if (!name.empty() && name.size() <= most_bytes) return absl::OkStatus();
  return InvalidField(field,
                      "has " + std::to_string(name.size()) + " bytes; must have 1 to " + std::to_string(most_bytes));
}

absl::Status CheckRange(const std::string& field, int64_t value, int64_t most) {
  if (value >= 0 && value <= most) return absl::OkStatus();
  return InvalidField(field, "is " + std::to_string(value) + "; must be 0 to " + std::to_string(most));
}

// The last bytes of a text, beginning at a whole UTF-8 character.
std::string Tail(const std::string& text, size_t most_bytes) {
  if (text.size() <= most_bytes) return text;
  size_t begin = text.size() - most_bytes;
  while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
  return text.substr(begin);
}

// The first bytes of a text, ending at a whole UTF-8 character.
std::string Head(const std::string& text, size_t most_bytes) {
  if (text.size() <= most_bytes) return text;
  size_t end = most_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

// For people: what is longer than anybody reads is refused, because it would come back with every answer.
absl::Status CheckText(const std::string& field, const std::string& text) {
  if (text.size() <= static_cast<size_t>(limits::kMaxReportTextBytes)) return absl::OkStatus();
  return InvalidField(
      field, "has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(limits::kMaxReportTextBytes));
}

// Of a message that has numbers alone: what else comes with it, of any size, is not kept.
template <typename Message>
std::string KnownFields(Message message) {
  message.DiscardUnknownFields();
  return message.SerializeAsString();
}

absl::StatusOr<ModelEntry> ModelFromProto(const v1::Model& model, const std::string& field) {
  LH_RETURN_IF_ERROR(CheckName(field + ".name", model.name(), limits::kMaxModelNameBytes));
  LH_RETURN_IF_ERROR(CheckName(field + ".digest", model.digest(), limits::kMaxModelNameBytes));
  LH_RETURN_IF_ERROR(CheckText(field + ".tokenizer_digest", model.tokenizer_digest()));
  LH_RETURN_IF_ERROR(CheckText(field + ".storage", model.storage()));
  LH_RETURN_IF_ERROR(CheckRange(field + ".size_bytes", model.size_bytes(), limits::kMaxReportedCount));
  ModelEntry out;
  out.name = model.name();
  out.digest = model.digest();
  auto shape = wire::FromProto(model.shape());
  if (!shape.ok()) return Annotate(shape.status(), field + ".shape");
  out.shape = *std::move(shape);
  out.tokenizer_digest = model.tokenizer_digest();
  out.size_bytes = model.size_bytes();
  out.storage = model.storage();
  out.has_chat_template = model.has_chat_template();
  return out;
}

absl::StatusOr<DeviceEntry> DeviceFromProto(const v1::Device& device, const std::string& field) {
  LH_RETURN_IF_ERROR(CheckName(field + ".id", device.id(), limits::kMaxWorkerIdBytes));
  const v1::DeviceFacts& facts = device.facts();
  LH_RETURN_IF_ERROR(CheckText(field + ".facts.device_class", facts.device_class()));
  LH_RETURN_IF_ERROR(CheckText(field + ".facts.isa", facts.isa()));
  LH_RETURN_IF_ERROR(CheckRange(field + ".facts.host_bytes", facts.host_bytes(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(field + ".facts.device_bytes", facts.device_bytes(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(field + ".facts.disk_bytes", facts.disk_bytes(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(field + ".facts.context_bytes", facts.context_bytes(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(
      CheckRange(field + ".facts.runtime_host_bytes", facts.runtime_host_bytes(), limits::kMaxReportedCount));
  auto converted = wire::FromProto(facts);
  if (!converted.ok()) return Annotate(converted.status(), field + ".facts");
  return DeviceEntry{device.id(), *std::move(converted)};
}

absl::Status InventoryFromProto(const v1::WorkerInventory& inventory, Worker* out) {
  LH_RETURN_IF_ERROR(CheckCount("inventory.models", inventory.models_size(), limits::kMaxModelsPerWorker));
  LH_RETURN_IF_ERROR(CheckCount("inventory.devices", inventory.devices_size(), limits::kMaxDevicesPerWorker));
  LH_RETURN_IF_ERROR(CheckText("inventory.host_name", inventory.host_name()));
  LH_RETURN_IF_ERROR(CheckRange("inventory.host_bytes_total", inventory.host_bytes_total(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange("inventory.disk_bytes_total", inventory.disk_bytes_total(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange("inventory.cpu_threads_total", inventory.cpu_threads_total(), limits::kMaxCpuThreads));
  out->host_name = inventory.host_name();
  out->host_bytes_total = inventory.host_bytes_total();
  out->disk_bytes_total = inventory.disk_bytes_total();
  out->cpu_threads_total = inventory.cpu_threads_total();
  for (int i = 0; i < inventory.devices_size(); ++i) {
    LH_ASSIGN_OR_RETURN(DeviceEntry device, DeviceFromProto(inventory.devices(i), At("inventory.devices", i)));
    out->devices.push_back(std::move(device));
  }
  for (int i = 0; i < inventory.models_size(); ++i) {
    LH_ASSIGN_OR_RETURN(ModelEntry model, ModelFromProto(inventory.models(i), At("inventory.models", i)));
    out->models.push_back(std::move(model));
  }
  return absl::OkStatus();
}

v1::WorkerInventory InventoryToProto(const Worker& worker) {
  v1::WorkerInventory out;
  out.set_host_name(worker.host_name);
  out.set_host_bytes_total(worker.host_bytes_total);
  out.set_disk_bytes_total(worker.disk_bytes_total);
  out.set_cpu_threads_total(worker.cpu_threads_total);
  for (const DeviceEntry& device : worker.devices) {
    v1::Device* proto = out.add_devices();
    proto->set_id(device.id);
    *proto->mutable_facts() = wire::ToProto(device.facts);
  }
  for (const ModelEntry& model : worker.models) {
    v1::Model* proto = out.add_models();
    proto->set_name(model.name);
    proto->set_digest(model.digest);
    *proto->mutable_shape() = wire::ToProto(model.shape);
    proto->set_tokenizer_digest(model.tokenizer_digest);
    proto->set_size_bytes(model.size_bytes);
    proto->set_storage(model.storage);
    proto->set_has_chat_template(model.has_chat_template);
  }
  return out;
}

absl::Status SetExit(const v1::AttemptStatus& status, const std::string& field, AttemptReport* out) {
  if (!status.has_exit()) return absl::OkStatus();
  const v1::TrainerExit& exit = status.exit();
  if (!v1::TrainerExitReason_IsValid(exit.reason()) || exit.reason() == v1::TRAINER_EXIT_REASON_UNSPECIFIED) {
    return InvalidField(field + ".exit.reason",
                        "is " + std::to_string(static_cast<int>(exit.reason())) + ", which is no way to exit");
  }
  if (!v1::Reason_IsValid(exit.failure())) {
    return InvalidField(field + ".exit.failure",
                        "is " + std::to_string(static_cast<int>(exit.failure())) + ", which is no reason");
  }
  out->exit = static_cast<ExitReason>(exit.reason());
  out->exit_failure.reason = static_cast<Reason>(exit.failure());
  out->exit_failure.message = Tail(exit.message(), limits::kFailureLogTailBytes);
  out->exit_failure.user_can_fix = exit.user_can_fix();
  out->device_at_fault = exit.device_at_fault() && out->exit_failure.reason == Reason::kDeviceFault;
  out->exit_failure.log_tail = Tail(status.log_tail(), limits::kFailureLogTailBytes);
  if (out->exit != ExitReason::kCrashed) return absl::OkStatus();
  if (out->exit_failure.reason == Reason::kNone) out->exit_failure.reason = Reason::kTrainerCrashed;
  if (out->exit_failure.message.empty()) {
    out->exit_failure.message = exit.signal() == 0 ? "the trainer ended without saying why"
                                                   : "the trainer was ended by signal " + std::to_string(exit.signal());
  }
  return absl::OkStatus();
}

// What the scheduler adds up and plans with must not overflow it.
absl::Status CheckFigures(const v1::AttemptStatus& status, const std::string& field) {
  LH_RETURN_IF_ERROR(CheckRange(field + ".host_bytes_peak", status.host_bytes_peak(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(field + ".device_bytes_peak", status.device_bytes_peak(), limits::kMaxReportedCount));
  for (const v1::TrainingProgress& progress : status.progress()) {
    LH_RETURN_IF_ERROR(CheckRange(field + ".progress.step", progress.step(), limits::kMaxReportedCount));
    LH_RETURN_IF_ERROR(
        CheckRange(field + ".progress.trained_tokens", progress.trained_tokens(), limits::kMaxReportedCount));
  }
  const v1::DataReport& report = status.data_report();
  const std::string of_report = field + ".data_report.";
  LH_RETURN_IF_ERROR(CheckRange(of_report + "longest_tokens", report.longest_tokens(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(of_report + "total_steps", report.total_steps(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(of_report + "error_count", report.error_count(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(of_report + "examples", report.examples(), limits::kMaxReportedCount));
  LH_RETURN_IF_ERROR(CheckRange(of_report + "eval_tokens", report.eval_tokens(), limits::kMaxReportedCount));
  return CheckRange(of_report + "tokens", report.tokens(), limits::kMaxReportedCount);
}

// A job carries its report to everybody who asks for it: what is longer than a trainer ever writes is cut.
v1::DataReport Cut(v1::DataReport report) {
  report.DiscardUnknownFields();
  const auto keep = [](auto* list, int most) {
    if (list->size() > most) list->DeleteSubrange(most, list->size() - most);
  };
  keep(report.mutable_length_histogram(), limits::kMaxLengthBuckets);
  keep(report.mutable_errors(), static_cast<int>(limits::kMaxDatasetErrorsReported));
  for (v1::DataError& error : *report.mutable_errors()) {
    error.set_field(Head(error.field(), limits::kMaxDataErrorBytes));
    error.set_reason(Head(error.reason(), limits::kMaxDataErrorBytes));
    error.set_file_name(Head(error.file_name(), limits::kMaxDatasetFileNameBytes));
  }
  return report;
}

void SetReport(const v1::DataReport& report, AttemptReport* out) {
  out->data_report = Cut(report).SerializeAsString();
  out->report_longest_tokens = report.longest_tokens();
  out->report_total_steps = report.total_steps();
  out->report_error_count = report.error_count();
  out->report_examples = report.examples();
  out->report_tokens = report.tokens() + report.eval_tokens();
}

absl::Status SpecToProto(const StartCommand& start, v1::AttemptSpec* out) {
  const Job& job = start.job;
  out->set_job_id(job.id);
  out->set_attempt(start.key.attempt);
  out->set_lease_epoch(start.key.lease_epoch);
  out->set_kind(NumberOf<v1::AttemptKind>(start.kind));
  if (!out->mutable_spec()->ParseFromString(job.resolved_spec)) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL", "the stored spec of " + job.id + " does not parse");
  }
  out->set_model_digest(job.model_digest);
  out->set_model_name(job.model);
  out->set_memory_plan_json(start.memory_plan_json);
  out->set_device_id(start.device_id);
  if (start.resume_from.has_value()) {
    *out->mutable_resume_from() = ToProto(*start.resume_from);
    // What the job had trained at the checkpoint; where the last known point is a later one, the checkpoint itself
    // knows.
    v1::TrainingProgress progress;
    if (progress.ParseFromString(job.progress) && progress.step() == start.resume_from->step) {
      out->set_trained_tokens_before(progress.trained_tokens());
    }
  }
  if (!job.data_report.empty() && !out->mutable_data_report()->ParseFromString(job.data_report)) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL",
                     "the stored data report of " + job.id + " does not parse");
  }
  return absl::OkStatus();
}

}  // namespace

AttemptKey FromProto(const v1::AttemptKey& key) { return {key.job_id(), key.attempt(), key.lease_epoch()}; }

v1::AttemptKey ToProto(const AttemptKey& key) {
  v1::AttemptKey out;
  out.set_job_id(key.job_id);
  out.set_attempt(key.attempt);
  out.set_lease_epoch(key.lease_epoch);
  return out;
}

absl::StatusOr<AttemptReport> FromProto(const v1::AttemptStatus& status, const std::string& field) {
  LH_RETURN_IF_ERROR(CheckCount(field + ".progress", status.progress_size(), limits::kMaxProgressPerSync));
  LH_RETURN_IF_ERROR(CheckCount(field + ".warnings", status.warnings_size(), limits::kMaxWarningsPerSync));
  if (!v1::AttemptPhase_IsValid(status.phase()) || status.phase() == v1::ATTEMPT_PHASE_UNSPECIFIED) {
    return InvalidField(field + ".phase",
                        "is " + std::to_string(static_cast<int>(status.phase())) + ", which is no phase");
  }
  LH_RETURN_IF_ERROR(CheckFigures(status, field));
  AttemptReport out;
  out.key = FromProto(status.key());
  out.phase = static_cast<AttemptPhase>(status.phase());
  for (const v1::TrainingProgress& progress : status.progress()) {
    MetricPoint point;
    point.attempt = out.key.attempt;
    point.step = progress.step();
    point.progress = KnownFields(progress);
    point.trained_tokens = progress.trained_tokens();
    point.wall_micros = FromTimestamp(progress.time());
    point.step_seconds =
        std::isfinite(progress.step_seconds()) ? std::clamp(progress.step_seconds(), 0.0, kMaxStepSeconds) : 0;
    out.progress.push_back(std::move(point));
  }
  for (const std::string& warning : status.warnings()) {
    out.warnings.push_back(Head(warning, limits::kMaxWarningBytes));
  }
  if (status.has_data_report()) SetReport(status.data_report(), &out);
  LH_RETURN_IF_ERROR(SetExit(status, field, &out));
  out.host_bytes_peak = status.host_bytes_peak();
  out.device_bytes_peak = status.device_bytes_peak();
  out.artifact_committed = status.artifact_committed();
  return out;
}

absl::StatusOr<SessionInput> FromProto(const v1::OpenSessionRequest& request) {
  LH_RETURN_IF_ERROR(CheckName("worker_id", request.worker_id(), limits::kMaxWorkerIdBytes));
  LH_RETURN_IF_ERROR(CheckCount("attempts", request.attempts_size(), limits::kMaxReportsPerSync));
  LH_RETURN_IF_ERROR(CheckText("build", request.build()));
  SessionInput out;
  out.protocol_version = request.protocol_version();
  out.worker.id = request.worker_id();
  out.worker.build = request.build();
  out.worker.plan_version = request.plan_version();
  out.leaving = request.leaving();
  if (request.has_last_opening()) out.last_opening = request.last_opening();
  LH_RETURN_IF_ERROR(InventoryFromProto(request.inventory(), &out.worker));
  for (int i = 0; i < request.attempts_size(); ++i) {
    LH_ASSIGN_OR_RETURN(AttemptReport report, FromProto(request.attempts(i), At("attempts", i)));
    out.attempts.push_back(std::move(report));
  }
  return out;
}

absl::StatusOr<SyncInput> FromProto(const v1::SyncRequest& request) {
  LH_RETURN_IF_ERROR(CheckCount("attempts", request.attempts_size(), limits::kMaxReportsPerSync));
  LH_RETURN_IF_ERROR(CheckRange("sync_number", request.sync_number(), limits::kMaxReportedCount));
  SyncInput out;
  out.session_id = request.session_id();
  out.sync_number = request.sync_number();
  // No reason to lose a worker.
  out.host_bytes_available = std::clamp<int64_t>(request.host_bytes_available(), 0, limits::kMaxReportedCount);
  // A disk that is full to the last byte is told, too.
  if (request.has_disk_bytes_available()) {
    out.disk_bytes_available = std::clamp<int64_t>(request.disk_bytes_available(), 1, limits::kMaxReportedCount);
  }
  out.leaving = request.leaving();
  for (int i = 0; i < request.attempts_size(); ++i) {
    LH_ASSIGN_OR_RETURN(AttemptReport report, FromProto(request.attempts(i), At("attempts", i)));
    out.attempts.push_back(std::move(report));
  }
  return out;
}

std::string FromProto(const v1::TrainingResult& result) { return KnownFields(result); }

v1::OpenSessionResponse ToProto(const SessionReply& reply) {
  v1::OpenSessionResponse out;
  out.set_session_id(reply.session_id);
  out.set_opening(reply.opening);
  out.set_hold_ms(reply.hold_ms);
  out.set_lease_ms(reply.lease_ms);
  for (const AttemptKey& key : reply.fenced) *out.add_fenced() = ToProto(key);
  return out;
}

absl::StatusOr<v1::SyncResponse> ToProto(const SyncReply& reply) {
  v1::SyncResponse out;
  for (const StartCommand& start : reply.starts) {
    v1::StartAttempt* proto = out.add_commands()->mutable_start();
    *proto->mutable_key() = ToProto(start.key);
    LH_RETURN_IF_ERROR(SpecToProto(start, proto->mutable_spec()));
  }
  for (const StopCommand& stop : reply.stops) {
    v1::StopAttempt* proto = out.add_commands()->mutable_stop();
    *proto->mutable_key() = ToProto(stop.key);
    proto->set_mode(NumberOf<v1::StopMode>(stop.mode));
  }
  for (const AttemptKey& key : reply.leases) *out.add_leases() = ToProto(key);
  for (const AttemptKey& key : reply.acknowledged) *out.add_acknowledged() = ToProto(key);
  out.set_lease_ms(reply.lease_ms);
  return out;
}

v1::Worker ToProto(const WorkerView& view) {
  v1::Worker out;
  out.set_id(view.worker->id);
  out.set_state(view.suspect ? v1::WORKER_SUSPECT : view.online ? v1::WORKER_ONLINE : v1::WORKER_OFFLINE);
  *out.mutable_inventory() = InventoryToProto(*view.worker);
  if (view.last_sync_wall_micros != 0) {
    *out.mutable_last_sync_time() = ToTimestamp(view.last_sync_wall_micros);
  }
  for (const WorkerView::Running& running : view.attempts) {
    v1::WorkerAttempt* proto = out.add_attempts();
    proto->set_job_id(running.key.job_id);
    proto->set_attempt(running.key.attempt);
    proto->set_host_bytes(running.host_bytes);
    proto->set_device_bytes(running.device_bytes);
    proto->set_cpu_threads(running.cpu_threads);
  }
  out.set_draining(view.worker->draining);
  out.set_leaving(view.leaving);
  for (const WorkerView::Rest& rest : view.rests) {
    v1::DeviceRest* proto = out.add_device_rests();
    proto->set_device_id(rest.device_id);
    proto->set_faults(rest.faults);
    *proto->mutable_until_time() = ToTimestamp(rest.until_wall_micros);
  }
  out.set_build(view.worker->build);
  out.set_plan_version(view.worker->plan_version);
  out.set_host_bytes_reserved(view.host_bytes_reserved);
  out.set_device_bytes_reserved(view.device_bytes_reserved);
  out.set_cpu_threads_reserved(view.cpu_threads_reserved);
  return out;
}

}  // namespace longhaul::server
