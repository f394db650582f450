#include "server/rpc/fine_tune_create.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/status_macros.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/core/transitions.h"
#include "server/rpc/admission.h"
#include "server/rpc/convert.h"
#include "server/rpc/enum_numbers.h"
#include "server/rpc/visibility.h"
#include "wire/job_spec.h"
#include "wire/model_values.h"

namespace longhaul::server {
namespace {

// Maps in key order, so that the same request has the same bytes.
std::string SerializeDeterministic(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

std::string BodyHash(v1::CreateFineTuneJobRequest request, const std::string& project) {
  request.clear_request_id();
  request.set_project(project);
  return Sha256Hex(SerializeDeterministic(request));
}

// The job of an earlier Create with this request_id; none: a new one.
absl::StatusOr<std::optional<Job>> FindEarlier(const RpcContext& context, const std::string& project,
                                               const std::string& request_id, const std::string& body_sha256) {
  if (request_id.empty()) return std::optional<Job>();
  LH_ASSIGN_OR_RETURN(const std::optional<RequestKey> key, context.store->GetRequestKey(project, request_id));
  if (!key.has_value()) return std::optional<Job>();
  if (key->body_sha256 != body_sha256) {
    return MakeError(absl::StatusCode::kAlreadyExists, "REQUEST_ID_REUSED",
                     "request_id " + request_id + " was used for job " + key->job_id + " with another request",
                     {{"request_id", "was used for another request"}});
  }
  absl::StatusOr<Job> job = context.store->GetJob(key->job_id);
  if (absl::IsNotFound(job.status())) return DeletedSince(request_id, key->job_id);
  LH_RETURN_IF_ERROR(job.status());
  return std::optional<Job>(*std::move(job));
}

// What another project has uploaded is not there: knowing its hash is not having it.
absl::Status CheckUploaded(const RpcContext& context, const Caller& caller, const std::string& field,
                           const v1::Dataset& dataset) {
  const BlobRef blob{dataset.sha256(), dataset.size_bytes()};
  LH_ASSIGN_OR_RETURN(bool present, context.blobs->Present(blob));
  if (present) {
    LH_ASSIGN_OR_RETURN(present, MaySeeBlob(*context.store, caller, blob));
  }
  if (present) return absl::OkStatus();
  const std::string what = "names a blob that is not uploaded: " + dataset.sha256() + " of " +
                           std::to_string(dataset.size_bytes()) + " bytes";
  return MakeError(absl::StatusCode::kFailedPrecondition, "DATASET_NOT_UPLOADED",
                   field + " " + what + "; upload it with BlobService.Write first", {{field, what}});
}

absl::Status CheckDatasets(const RpcContext& context, const Caller& caller, const v1::JobSpec& spec) {
  LH_RETURN_IF_ERROR(CheckUploaded(context, caller, "spec.dataset", spec.dataset()));
  if (!spec.has_eval_dataset()) return absl::OkStatus();
  return CheckUploaded(context, caller, "spec.eval_dataset", spec.eval_dataset());
}

struct FleetPlan {
  std::vector<v1::DeviceClassEstimate> classes;
  std::optional<TrainShape> train;  // on the fastest class that the job fits on
};

absl::StatusOr<FleetPlan> PlanOnFleet(const RpcContext& context, const FleetView& fleet, const v1::JobSpec& resolved,
                                      const ModelShape& shape) {
  FleetPlan out;
  double best_seconds = 0;
  for (const FleetView::Class& device_class : fleet.classes) {
    LH_ASSIGN_OR_RETURN(ClassPlan plan, PlanOn(context.plans, resolved, nullptr, shape, device_class));
    const double seconds = plan.estimate.estimate().step_seconds();
    if (plan.estimate.fits() && (!out.train.has_value() || seconds < best_seconds)) {
      out.train = plan.train;
      best_seconds = seconds;
    }
    out.classes.push_back(std::move(plan.estimate));
  }
  return out;
}

// Fields that Create fixes, but for those that the dispatcher gives.
Job MakeJob(const RpcContext& context, const v1::CreateFineTuneJobRequest& request, const std::string& project,
            const v1::JobSpec& resolved, const ModelEntry& model) {
  Job job;
  job.project = project;
  job.suffix = request.suffix();
  job.request_id = request.request_id();
  job.labels = {request.labels().begin(), request.labels().end()};
  job.metadata = {request.metadata().begin(), request.metadata().end()};
  job.spec = SerializeDeterministic(request.spec());
  job.resolved_spec = SerializeDeterministic(resolved);
  job.model = model.name;
  job.model_digest = model.digest;
  job.model_shape = model.shape;
  job.inputs.push_back({resolved.dataset().sha256(), resolved.dataset().size_bytes()});
  if (resolved.has_eval_dataset()) {
    job.inputs.push_back({resolved.eval_dataset().sha256(), resolved.eval_dataset().size_bytes()});
  }
  job.priority = static_cast<PriorityClass>(resolved.priority());
  job.device_share = static_cast<DeviceShare>(resolved.resources().device_share());
  job.device_share_bytes = resolved.resources().device_share_bytes();
  job.retry_limit = resolved.retry().limit();
  job.backoff_seconds = resolved.retry().backoff_seconds();
  job.allow_nonidentical_resume = resolved.hyperparameters().allow_nonidentical_resume();
  job.compute_of_device = resolved.hyperparameters().compute_type() == v1::COMPUTE_TYPE_UNSPECIFIED;
  if (resolved.deadline_seconds() > 0) {
    job.deadline_wall_micros = context.gate.clock()->WallMicros() + resolved.deadline_seconds() * 1'000'000;
  }
  return job;
}

// When the job would start, were it validated and queued now.
absl::StatusOr<v1::QueueForecast> ForecastQueue(const RpcContext& context, const std::string& project,
                                                const v1::JobSpec& resolved, const ModelEntry& model,
                                                const FleetPlan& plan, const std::function<bool()>& cancelled) {
  v1::CreateFineTuneJobRequest request;
  *request.mutable_spec() = resolved;
  Job job = MakeJob(context, request, project, resolved, model);
  job.train_shape = *plan.train;
  for (const v1::DeviceClassEstimate& one : plan.classes) {
    if (one.fits()) job.total_steps = one.estimate().total_steps();
  }
  LH_ASSIGN_OR_RETURN(const StartForecast forecast, context.dispatcher->Forecast(std::move(job), cancelled));
  v1::QueueForecast out;
  out.set_position(forecast.wait.position);
  out.set_device_class(forecast.device_class);
  out.set_reason(NumberOf<v1::Reason>(forecast.wait.reason));
  out.set_reason_detail(forecast.wait.detail);
  if (forecast.wait.expected_wall_micros != 0) {
    *out.mutable_expected_start_time() = ToTimestamp(forecast.wait.expected_wall_micros);
  }
  if (forecast.expected_end_wall_micros != 0) {
    *out.mutable_expected_finish_time() = ToTimestamp(forecast.expected_end_wall_micros);
  }
  return out;
}

}  // namespace

absl::StatusOr<v1::Job> CreateJob(const RpcContext& context, const Caller& caller,
                                  const v1::CreateFineTuneJobRequest& request, Audit* audit) {
  audit->skip = request.validate_only();
  LH_ASSIGN_OR_RETURN(const std::string project, ProjectOf(caller, request.project()));
  audit->record.project = project;
  const std::string body_sha256 = BodyHash(request, project);
  if (!request.validate_only()) {
    LH_ASSIGN_OR_RETURN(const std::optional<Job> earlier,
                        FindEarlier(context, project, request.request_id(), body_sha256));
    if (earlier.has_value()) {
      audit->record.target = earlier->id;
      return ShowJob(context, *earlier);
    }
  }

  const std::shared_ptr<const FleetView> fleet = context.dispatcher->Fleet();
  LH_RETURN_IF_ERROR(CheckCreate(request, *fleet));
  const ModelEntry& model = *FindModel(*fleet, request.spec().model());
  // Who only asks need not have sent the data.
  if (!request.validate_only()) LH_RETURN_IF_ERROR(CheckDatasets(context, caller, request.spec()));
  v1::JobSpec resolved = request.spec();
  wire::ResolveJobSpec(&resolved, model.shape, model.storage);
  LH_ASSIGN_OR_RETURN(FleetPlan plan, PlanOnFleet(context, *fleet, resolved, model.shape));
  if (!plan.train.has_value()) {
    return ExceedsEveryDevice(plan.classes, resolved.hyperparameters().max_sequence_length());
  }

  CreateInput input;
  input.job = MakeJob(context, request, project, resolved, model);
  input.job.train_shape = *plan.train;
  input.body_sha256 = body_sha256;
  if (request.validate_only()) return ShowJob(context, input.job);
  LH_ASSIGN_OR_RETURN(const Job job, context.dispatcher->Create(std::move(input), audit));
  // It has only come: its place in the queue is for Get to work out.
  return ShowJob(context, job, std::nullopt);
}

absl::StatusOr<v1::EstimateFineTuneJobResponse> EstimateJob(const RpcContext& context, const Caller& caller,
                                                            const v1::EstimateFineTuneJobRequest& request,
                                                            const std::function<bool()>& cancelled) {
  LH_ASSIGN_OR_RETURN(const std::string project, ProjectOf(caller, request.project()));
  const std::shared_ptr<const FleetView> fleet = context.dispatcher->Fleet();
  ModelShape shape;
  std::string storage;
  const ModelEntry* model = FindModel(*fleet, request.spec().model());
  if (request.has_model_shape()) {
    LH_ASSIGN_OR_RETURN(shape, wire::FromProto(request.model_shape()));
  } else if (model != nullptr) {
    shape = model->shape;
    storage = model->storage;
  }
  const bool shape_known = request.has_model_shape() || model != nullptr;
  const wire::JobSpecRules rules{.require_model = !request.has_model_shape(), .require_dataset = false};
  LH_RETURN_IF_ERROR(wire::ValidateJobSpec(request.spec(), shape_known ? &shape : nullptr, rules));
  if (!shape_known) return UnknownModel(*fleet, request.spec().model());

  v1::EstimateFineTuneJobResponse response;
  *response.mutable_resolved_spec() = request.spec();
  wire::ResolveJobSpec(response.mutable_resolved_spec(), shape, storage);
  *response.mutable_model_shape() = wire::ToProto(shape);
  LH_ASSIGN_OR_RETURN(FleetPlan plan, PlanOnFleet(context, *fleet, response.resolved_spec(), shape));
  response.set_fits_somewhere(plan.train.has_value());
  if (plan.train.has_value() && model != nullptr) {
    absl::StatusOr<v1::QueueForecast> queue =
        ForecastQueue(context, project, response.resolved_spec(), *model, plan, cancelled);
    if (queue.ok()) {
      *response.mutable_queue() = *std::move(queue);
    } else if (ErrorReason(queue.status()) == "TOO_MANY_FORECASTS") {
      response.set_queue_unknown(true);  // what it needs is known all the same
    } else {
      return queue.status();
    }
  }
  for (v1::DeviceClassEstimate& one : plan.classes) *response.add_classes() = std::move(one);
  return response;
}

v1::Job ShowJob(const RpcContext& context, const Job& job) {
  return ShowJob(context, job, context.dispatcher->WaitOf(job));
}

v1::Job ShowJob(const RpcContext& context, const Job& job, const std::optional<WaitInfo>& wait) {
  v1::Job out = ToProto(job, wait);
  const v1::DataReport* report = out.has_data_report() ? &out.data_report() : nullptr;
  const std::string& wanted = job.attempt.device_class.empty() ? job.pinned_device_class : job.attempt.device_class;
  const std::shared_ptr<const FleetView> fleet = context.dispatcher->Fleet();
  for (const FleetView::Class& device_class : fleet->classes) {
    if (!wanted.empty() && device_class.facts.device_class != wanted) continue;
    absl::StatusOr<ClassPlan> plan = PlanOn(context.plans, out.resolved_spec(), report, job.model_shape, device_class);
    if (!plan.ok()) continue;
    *out.mutable_estimate() = plan->estimate.estimate();
    if (plan->estimate.fits()) break;
  }
  return out;
}

}  // namespace longhaul::server
