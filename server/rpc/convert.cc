#include "server/rpc/convert.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/rpc/enum_numbers.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

// What the domain keeps as bytes was serialised by us.
template <typename Message>
bool ParseOwn(const std::string& bytes, const std::string& where, Message* out) {
  if (bytes.empty()) return false;
  if (out->ParseFromString(bytes)) return true;
  spdlog::error("{}: a stored {} does not parse", where, out->GetTypeName());
  return false;
}

void SetTime(int64_t wall_micros, google::protobuf::Timestamp* out) {
  if (wall_micros != 0) *out = ToTimestamp(wall_micros);
}

template <typename Files>
void SetFiles(const std::vector<NamedBlob>& files, Files* out) {
  for (const NamedBlob& file : files) {
    v1::BlobFile* proto = out->Add();
    proto->set_path(file.path);
    proto->set_sha256(file.blob.sha256);
    proto->set_size_bytes(file.blob.size_bytes);
  }
}

void SetOutcome(const Job& job, v1::Job* out) {
  if (job.failure.reason != Reason::kNone) {
    v1::Failure* failure = out->mutable_failure();
    failure->set_reason(NumberOf<v1::Reason>(job.failure.reason));
    failure->set_message(job.failure.message);
    failure->set_user_can_fix(job.failure.user_can_fix);
    failure->set_log_tail(job.failure.log_tail);
  }
  if (!job.artifact.empty()) {
    SetFiles(job.artifact, out->mutable_artifact()->mutable_files());
    SetTime(job.artifact_wall_micros, out->mutable_artifact()->mutable_commit_time());
  }
  if (v1::TrainingResult result; ParseOwn(job.result, job.id, &result)) *out->mutable_result() = std::move(result);
  if (v1::DataReport report; ParseOwn(job.data_report, job.id, &report))
    *out->mutable_data_report() = std::move(report);
  if (v1::TrainingProgress progress; ParseOwn(job.progress, job.id, &progress)) {
    *out->mutable_progress() = std::move(progress);
  }
}

void SetTimes(const Job& job, v1::Job* out) {
  SetTime(job.create_wall_micros, out->mutable_create_time());
  if (job.start_wall_micros != 0) SetTime(job.start_wall_micros, out->mutable_start_time());
  if (job.end_wall_micros != 0) SetTime(job.end_wall_micros, out->mutable_end_time());
  if (job.deadline_wall_micros != 0) SetTime(job.deadline_wall_micros, out->mutable_deadline());
  if (job.not_before_wall_micros != 0) SetTime(job.not_before_wall_micros, out->mutable_not_before());
}

absl::Status CheckFile(const v1::BlobFile& file, const std::string& field) {
  const std::string& path = file.path();
  const bool plain =
      path.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == std::string::npos;
  if (path.empty() || path.size() > limits::kMaxFileNameBytes || !plain || path.front() == '.') {
    return InvalidField(field + ".path",
                        "must be one name of letters, digits, '.', '_' and '-', not beginning with '.', of at most " +
                            std::to_string(limits::kMaxFileNameBytes) + " bytes");
  }
  if (!IsSha256Hex(file.sha256())) return InvalidField(field + ".sha256", "must be 64 lower-case hex digits");
  if (file.size_bytes() < 0 || file.size_bytes() > limits::kMaxBlobBytes) {
    return InvalidField(field + ".size_bytes", "is " + std::to_string(file.size_bytes()) + "; must be 0 to " +
                                                   std::to_string(limits::kMaxBlobBytes));
  }
  return absl::OkStatus();
}

}  // namespace

google::protobuf::Timestamp ToTimestamp(int64_t wall_micros) {
  google::protobuf::Timestamp time;
  int64_t seconds = wall_micros / 1'000'000;
  int64_t micros = wall_micros % 1'000'000;
  if (micros < 0) {
    --seconds;
    micros += 1'000'000;
  }
  time.set_seconds(seconds);
  time.set_nanos(static_cast<int32_t>(micros * 1000));
  return time;
}

int64_t FromTimestamp(const google::protobuf::Timestamp& time) {
  // Beyond the years that a Timestamp may hold the product would overflow.
  constexpr int64_t kMaxSeconds = 253'402'300'799;
  const int64_t seconds = std::min(std::max(time.seconds(), -kMaxSeconds), kMaxSeconds);
  return seconds * 1'000'000 + time.nanos() / 1000;
}

v1::Job ToProto(const Job& job, const std::optional<WaitInfo>& wait) {
  v1::Job out;
  out.set_id(job.id);
  out.set_project(job.project);
  out.set_suffix(job.suffix);
  out.mutable_labels()->insert(job.labels.begin(), job.labels.end());
  out.mutable_metadata()->insert(job.metadata.begin(), job.metadata.end());
  ParseOwn(job.spec, job.id, out.mutable_spec());
  ParseOwn(job.resolved_spec, job.id, out.mutable_resolved_spec());
  out.set_model_digest(job.model_digest);
  out.set_state(NumberOf<v1::JobState>(job.state));
  out.set_reason(NumberOf<v1::Reason>(wait.has_value() ? wait->reason : job.reason));
  out.set_reason_detail(wait.has_value() ? wait->detail : job.reason_detail);
  if (job.attempt.number > 0) *out.mutable_attempt() = ToProto(job.attempt);
  out.set_failed_attempts(job.failed_attempts);
  out.set_sequence(job.sequence);
  if (wait.has_value()) {
    out.set_queue_position(wait->position);
    if (wait->expected_wall_micros != 0) SetTime(wait->expected_wall_micros, out.mutable_expected_start_time());
  }
  out.set_preemptions(job.preemptions);
  out.set_pause_cause(NumberOf<v1::PauseCause>(job.pause_cause));
  SetTimes(job, &out);
  SetOutcome(job, &out);
  return out;
}

v1::JobEvent ToProto(const JobEvent& event) {
  v1::JobEvent out;
  out.set_sequence(event.sequence);
  SetTime(event.wall_micros, out.mutable_time());
  out.set_type(NumberOf<v1::JobEventType>(event.type));
  // The first event has no state before it: the domain says so by equal states.
  if (event.sequence > 1) out.set_from_state(NumberOf<v1::JobState>(event.from_state));
  out.set_state(NumberOf<v1::JobState>(event.state));
  out.set_reason(NumberOf<v1::Reason>(event.reason));
  out.set_message(event.message);
  out.set_attempt(event.attempt);
  out.set_step(event.step);
  return out;
}

v1::Attempt ToProto(const Attempt& attempt) {
  v1::Attempt out;
  out.set_number(attempt.number);
  out.set_kind(NumberOf<v1::AttemptKind>(attempt.kind));
  out.set_worker_id(attempt.worker_id);
  out.set_device_id(attempt.device_id);
  out.set_lease_epoch(attempt.lease_epoch);
  if (attempt.start_wall_micros != 0) SetTime(attempt.start_wall_micros, out.mutable_start_time());
  if (attempt.end_wall_micros != 0) SetTime(attempt.end_wall_micros, out.mutable_end_time());
  out.set_outcome(NumberOf<v1::AttemptOutcome>(attempt.outcome));
  out.set_reason(NumberOf<v1::Reason>(attempt.reason));
  out.set_message(attempt.message);
  out.set_resumed_from_step(attempt.resumed_from_step);
  out.set_device_bytes_planned(attempt.device_bytes_planned);
  out.set_host_bytes_planned(attempt.host_bytes_planned);
  out.set_host_bytes_peak(attempt.host_bytes_peak);
  out.set_device_bytes_peak(attempt.device_bytes_peak);
  return out;
}

v1::Checkpoint ToProto(const Checkpoint& checkpoint) {
  v1::Checkpoint out;
  out.set_step(checkpoint.step);
  out.set_attempt(checkpoint.attempt);
  SetFiles(checkpoint.files, out.mutable_files());
  if (checkpoint.eval_loss.has_value()) out.set_eval_loss(*checkpoint.eval_loss);
  if (checkpoint.commit_wall_micros != 0) SetTime(checkpoint.commit_wall_micros, out.mutable_commit_time());
  out.set_final(checkpoint.final);
  out.set_plan_signature(checkpoint.plan_signature);
  out.set_made_with(checkpoint.made_with);
  return out;
}

v1::TrainingProgress ToProto(const MetricPoint& point) {
  v1::TrainingProgress out;
  ParseOwn(point.progress, "a metric point", &out);
  out.set_attempt(point.attempt);
  out.set_step(point.step);
  return out;
}

absl::StatusOr<JobState> FromProto(v1::JobState state, const std::string& field) {
  if (!v1::JobState_IsValid(state) || state == v1::JOB_STATE_UNSPECIFIED) {
    return InvalidField(field, "is " + std::to_string(static_cast<int>(state)) + ", which is no job state");
  }
  return static_cast<JobState>(state);
}

absl::StatusOr<std::vector<NamedBlob>> FromProto(const google::protobuf::RepeatedPtrField<v1::BlobFile>& files,
                                                 const std::string& field) {
  if (files.empty() || files.size() > limits::kMaxManifestFiles) {
    return InvalidField(field, "has " + std::to_string(files.size()) + " files; must have 1 to " +
                                   std::to_string(limits::kMaxManifestFiles));
  }
  std::vector<NamedBlob> out;
  std::set<std::string> names;
  for (int i = 0; i < files.size(); ++i) {
    const std::string where = field + "[" + std::to_string(i) + "]";
    LH_RETURN_IF_ERROR(CheckFile(files[i], where));
    if (!names.insert(files[i].path()).second)
      return InvalidField(where + ".path", "is there twice: " + files[i].path());
    out.push_back({files[i].path(), {files[i].sha256(), files[i].size_bytes()}});
  }
  return out;
}

absl::StatusOr<Checkpoint> FromProto(const v1::Checkpoint& checkpoint) {
  Checkpoint out;
  if (checkpoint.step() < 0 || checkpoint.step() > limits::kMaxSteps) {
    return InvalidField("checkpoint.step", "is " + std::to_string(checkpoint.step()) + "; must be 0 to " +
                                               std::to_string(limits::kMaxSteps));
  }
  out.step = checkpoint.step();
  out.final = checkpoint.final();
  if (checkpoint.has_eval_loss()) out.eval_loss = checkpoint.eval_loss();
  // Both go with every start that continues from it.
  for (const auto& [name, text] :
       {std::pair{"plan_signature", &checkpoint.plan_signature()}, std::pair{"made_with", &checkpoint.made_with()}}) {
    if (static_cast<int64_t>(text->size()) > limits::kMaxCheckpointTextBytes) {
      return InvalidField(
          std::string("checkpoint.") + name,
          "has " + std::to_string(text->size()) + " bytes; at most " + std::to_string(limits::kMaxCheckpointTextBytes));
    }
  }
  out.plan_signature = checkpoint.plan_signature();
  out.made_with = checkpoint.made_with();
  LH_ASSIGN_OR_RETURN(out.files, FromProto(checkpoint.files(), "checkpoint.files"));
  return out;
}

}  // namespace longhaul::server
