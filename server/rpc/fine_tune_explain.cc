#include "server/rpc/fine_tune_explain.h"

#include <optional>
#include <string>

#include "base/format.h"
#include "base/status_macros.h"
#include "server/core/transitions.h"
#include "server/rpc/convert.h"
#include "server/rpc/enum_numbers.h"
#include "server/rpc/fine_tune_create.h"
#include "server/rpc/progress_text.h"

namespace longhaul::server {
namespace {

std::string Place(const Attempt& attempt) {
  return "worker " + attempt.worker_id + (attempt.device_id.empty() ? "" : " (" + attempt.device_id + ")");
}

std::string PausingText(const Job& job) {
  switch (job.pause_cause) {
    case PauseCause::kUser:
      return "stops at the next step with a checkpoint, then it is paused, as the user asked";
    case PauseCause::kPreempt:
      return "stops at the next step with a checkpoint and is queued again: " + job.reason_detail;
    default:
      return "stops at the next step with a checkpoint and moves: " + job.reason_detail;
  }
}

std::string FailureText(const Job& job) {
  std::string text = std::string("failed, ") + Name(job.failure.reason) + ": " + job.failure.message;
  if (job.failure.reason == Reason::kRetryLimitExceeded) return text;
  if (job.failure.reason == Reason::kDeviceOom || job.failure.reason == Reason::kHostOom) {
    text += "; a plan that was admitted must not run out of memory: this is a bug of Longhaul, please report it";
  }
  return text + (IsRetryable(job.failure.reason) ? "" : "; another attempt would end the same, so there was none");
}

std::string Summary(const Job& job) {
  switch (job.state) {
    case JobState::kValidating:
      return "its dataset is being checked on " + Place(job.attempt);
    case JobState::kStarting:
      return "starts on " + Place(job.attempt) + ": fetches its inputs and loads the model";
    case JobState::kRunning: {
      const std::string progress = ProgressText(job);
      return "runs on " + Place(job.attempt) + (progress.empty() ? "" : ": " + progress);
    }
    case JobState::kPausing:
      return PausingText(job);
    case JobState::kPaused:
      return "is paused by the user; it holds no device";
    case JobState::kRecovering:
      return "its last attempt ended, " + std::string(Name(job.reason)) + ": " + job.reason_detail +
             "; its checkpoint is being verified";
    case JobState::kFinalizing:
      return "has trained to the end and stores its adapter";
    case JobState::kCancelling:
      return "is being cancelled; its trainer is told to stop";
    case JobState::kSucceeded:
      return "has succeeded; its adapter is stored";
    case JobState::kFailed:
      return FailureText(job);
    case JobState::kCancelled:
      return "was cancelled";
    case JobState::kQueued:
      break;
  }
  return "waits, " + std::string(Name(job.reason)) + ": " + job.reason_detail;
}

void AddUnblocks(const Job& job, v1::ExplainFineTuneJobResponse* out) {
  if (job.state == JobState::kPaused) {
    out->add_unblocks("`longhaul resume " + job.id + "`");
    if (job.deadline_wall_micros != 0) {
      out->add_unblocks("nothing after its deadline at " + FormatTimestamp(job.deadline_wall_micros) +
                        ", which runs on while it is paused");
    }
  }
  if (job.state == JobState::kFailed) {
    out->add_unblocks(job.failure.user_can_fix ? "correct the job or its data and submit it again"
                                               : "look at its log and at the worker, then submit it again");
  }
}

void SetWait(const Explanation& explanation, v1::ExplainFineTuneJobResponse* out) {
  v1::Job* job = out->mutable_job();
  job->set_reason(NumberOf<v1::Reason>(explanation.wait.reason));
  job->set_reason_detail(explanation.wait.detail);
  job->set_queue_position(explanation.wait.position);
  job->clear_expected_start_time();
  if (explanation.wait.expected_wall_micros != 0) {
    *job->mutable_expected_start_time() = ToTimestamp(explanation.wait.expected_wall_micros);
  }
  out->set_summary(std::string("waits, ") + Name(explanation.wait.reason) + ": " + explanation.wait.detail);
  for (const std::string& unblock : explanation.unblocks) out->add_unblocks(unblock);
  out->set_waiting_jobs(explanation.waiting_jobs);
  out->set_reserved(explanation.reserved);
  out->set_reserved_worker_id(explanation.reserved_worker_id);
  for (const std::string& id : explanation.after_job_ids) out->add_after_job_ids(id);
  for (const std::string& id : explanation.preempted_job_ids) out->add_preempted_job_ids(id);
  out->set_project_share(explanation.project_share);
  out->set_project_running_jobs(explanation.project_jobs);
  if (explanation.quota != Quota()) {
    out->mutable_quota()->set_running_jobs(explanation.quota.jobs);
    out->mutable_quota()->set_device_bytes(explanation.quota.device_bytes);
    out->mutable_quota()->set_host_bytes(explanation.quota.host_bytes);
    out->mutable_quota()->set_cpu_threads(explanation.quota.cpu_threads);
  }
  for (const ExplainedPlace& place : explanation.places) {
    v1::StartPlace* proto = out->add_places();
    proto->set_worker_id(place.worker_id);
    proto->set_device_id(place.device_id);
    proto->set_device_class(place.device_class);
    proto->set_possible(place.possible);
    proto->set_why(place.why);
    if (place.expected_wall_micros != 0) *proto->mutable_expected_time() = ToTimestamp(place.expected_wall_micros);
  }
  out->set_more_places(explanation.more_places);
}

}  // namespace

absl::StatusOr<v1::ExplainFineTuneJobResponse> ExplainJob(const RpcContext& context, const Job& seen) {
  v1::ExplainFineTuneJobResponse out;
  Job job = seen;
  if (Waits(job)) {
    LH_ASSIGN_OR_RETURN(const std::optional<Explanation> explanation, context.dispatcher->Explain(job.id));
    if (explanation.has_value()) {
      *out.mutable_job() = ShowJob(context, job);
      SetWait(*explanation, &out);
      return out;
    }
    // It was placed in this moment, or it has come in this moment.
    LH_ASSIGN_OR_RETURN(job, context.store->GetJob(job.id));
  }
  *out.mutable_job() = ShowJob(context, job);
  out.set_summary(Waits(job) ? "waits; what for, and its place, is not worked out yet: ask again in a moment"
                             : Summary(job));
  AddUnblocks(job, &out);
  return out;
}

}  // namespace longhaul::server
