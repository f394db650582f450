#include "server/rpc/admission.h"

#include <algorithm>
#include <utility>

#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "google/protobuf/unknown_field_set.h"
#include "model/memory_plan.h"
#include "wire/job_spec.h"
#include "wire/train_shape_of_spec.h"

namespace longhaul::server {
namespace {

void CheckBytes(const std::string& field, const std::string& value, int most, std::vector<FieldViolation>* faults) {
  if (value.size() <= static_cast<size_t>(most)) return;
  faults->push_back({field, "has " + std::to_string(value.size()) + " bytes; at most " + std::to_string(most)});
}

template <typename Map>
void CheckMap(const std::string& field, const Map& map, int most, int most_value_bytes,
              std::vector<FieldViolation>* faults) {
  if (map.size() > static_cast<size_t>(most)) {
    faults->push_back({field, "has " + std::to_string(map.size()) + " entries; at most " + std::to_string(most)});
    return;
  }
  for (const auto& [key, value] : map) {
    if (key.empty()) faults->push_back({field, "has an empty key"});
    CheckBytes(field + " key", key, limits::kMaxLabelBytes, faults);
    CheckBytes(field + "[\"" + key.substr(0, 64) + "\"]", value, most_value_bytes, faults);
  }
}

// The largest point at which the job fits: what it gets while nothing else waits. Null where it fits at none.
std::optional<PlanPoint> BestPoint(const ClassDemands& demands) {
  for (const PlanPoint point : {PlanPoint::kWhole, PlanPoint::kBalanced, PlanPoint::kMinimum}) {
    if (At(demands, point).fits) return point;
  }
  return std::nullopt;
}

void SetParts(const MemoryPlan& plan, const DeviceFacts& facts, v1::Estimate* out) {
  auto* parts = facts.kind == DeviceKind::kCpu ? out->mutable_host_parts() : out->mutable_device_parts();
  for (const PlanPart& part : plan.parts) {
    v1::MemoryPart* proto = parts->Add();
    proto->set_name(part.name);
    proto->set_bytes(part.bytes);
  }
  out->set_device_bytes(plan.device_bytes_total);
  out->set_host_bytes(plan.host_bytes_total);
  out->set_disk_bytes(plan.disk_bytes);
  out->set_cpu_threads(plan.choices.cpu_threads);
  out->set_step_seconds(plan.step_seconds);
  out->set_plan_summary(DescribeChoices(plan));
  for (std::string& warning : PlanWarnings(plan)) out->add_warnings(std::move(warning));
}

// Updates that the run takes: said by the validation, by the spec, or not known yet (0).
int64_t TotalSteps(const v1::JobSpec& resolved, const v1::DataReport* report) {
  if (report != nullptr && report->total_steps() > 0) return report->total_steps();
  return resolved.hyperparameters().max_steps();
}

int64_t SequenceLimit(const v1::JobSpec& resolved, const ModelShape& shape) {
  const bool past = resolved.hyperparameters().allow_long_positions();
  return past ? limits::kMaxSequenceLength : std::min(shape.max_position_embeddings, limits::kMaxSequenceLength);
}

PlanRequest RequestOf(const v1::JobSpec& resolved, const ModelShape& shape, const TrainShape& train,
                      int64_t total_steps) {
  PlanRequest request;
  request.model = shape;
  request.train = train;
  request.total_steps = total_steps;
  if (resolved.resources().device_share() != v1::DEVICE_SHARE_UNSPECIFIED) {
    request.share = static_cast<DeviceShare>(resolved.resources().device_share());
  }
  request.share_bytes = resolved.resources().device_share_bytes();
  return request;
}

absl::Status FillFitting(const Planner& planner, const PlanRequest& request, const DeviceFacts& facts,
                         v1::DeviceClassEstimate* out) {
  const ClassDemands demands = DemandsOn(planner, request, facts);
  const std::optional<PlanPoint> point = BestPoint(demands);
  if (!point.has_value()) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL",
                     "admission and placement disagree on " + facts.device_class);
  }
  LH_ASSIGN_OR_RETURN(const std::string json, planner.PlanJson(request, facts, *point));
  LH_ASSIGN_OR_RETURN(const MemoryPlan plan, MemoryPlanFromJson(json));
  SetParts(plan, facts, out->mutable_estimate());
  return absl::OkStatus();
}

// All of it but the number of workers and what follows from the number of steps.
absl::Status EstimateOn(const Planner& planner, const PlanRequest& request, const DeviceFacts& facts,
                        int64_t sequence_limit, v1::DeviceClassEstimate* answer) {
  answer->set_device_class(facts.device_class);
  answer->mutable_estimate()->set_device_class(facts.device_class);
  const Demand demand = AdmissionDemand(planner, request, facts);
  answer->set_fits(demand.fits);
  answer->set_why(demand.why);
  const PlanBudget budget = BudgetOf(request, facts, PlanPoint::kMinimum);
  answer->set_longest_sequence_length(
      LongestFittingSequence(request.model, request.train, facts, budget, sequence_limit));
  if (demand.fits) {
    LH_RETURN_IF_ERROR(FillFitting(planner, request, facts, answer));
  } else if (absl::StatusOr<MemoryPlan> least = MinimumPlan(request.model, request.train, facts); least.ok()) {
    SetParts(*least, facts, answer->mutable_estimate());
  }
  const int64_t disk_bytes = answer->estimate().disk_bytes();
  if (answer->fits() && facts.disk_bytes > 0 && disk_bytes > facts.disk_bytes) {
    answer->set_fits(false);
    answer->set_why("needs " + FormatBytes(disk_bytes) + " of disk, " + FormatBytes(facts.disk_bytes) + " are there");
  }
  return absl::OkStatus();
}

}  // namespace

const ModelEntry* FindModel(const FleetView& fleet, const std::string& name) {
  for (const ModelEntry& model : fleet.models) {
    if (model.name == name) return &model;
  }
  return nullptr;
}

absl::Status UnknownModel(const FleetView& fleet, const std::string& name) {
  std::vector<std::string> names;
  for (const ModelEntry& model : fleet.models) names.push_back(model.name);
  const std::string nearest = NearestWord(name, names.data(), names.data() + names.size());
  std::string what = "is \"" + name.substr(0, 64) + "\", which no registered worker has";
  if (!nearest.empty()) {
    what += "; did you mean \"" + nearest + "\"?";
  } else if (names.empty()) {
    what += "; no worker with a model has registered yet";
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "MODEL_UNKNOWN", "spec.model " + what, {{"spec.model", what}});
}

std::vector<FieldViolation> CheckCreateRequest(const v1::CreateFineTuneJobRequest& request) {
  std::vector<FieldViolation> faults;
  CheckBytes("request_id", request.request_id(), limits::kMaxRequestIdBytes, &faults);
  CheckBytes("project", request.project(), limits::kMaxProjectBytes, &faults);
  CheckBytes("suffix", request.suffix(), limits::kMaxSuffixBytes, &faults);
  CheckMap("labels", request.labels(), limits::kMaxLabels, limits::kMaxLabelBytes, &faults);
  CheckMap("metadata", request.metadata(), limits::kMaxMetadata, limits::kMaxMetadataValueBytes, &faults);
  const auto& unknown = request.GetReflection()->GetUnknownFields(request);
  for (int i = 0; i < unknown.field_count(); ++i) {
    faults.push_back({"request", "has the unknown field number " + std::to_string(unknown.field(i).number()) +
                                     "; is the client newer than this server?"});
  }
  return faults;
}

absl::Status CheckCreate(const v1::CreateFineTuneJobRequest& request, const FleetView& fleet) {
  std::vector<FieldViolation> faults = CheckCreateRequest(request);
  const ModelEntry* model = FindModel(fleet, request.spec().model());
  const absl::Status spec = wire::ValidateJobSpec(request.spec(), model == nullptr ? nullptr : &model->shape);
  for (FieldViolation& fault : ErrorViolations(spec)) faults.push_back(std::move(fault));
  const bool ask_model = model == nullptr && !request.spec().model().empty();
  if (ask_model) {
    const absl::Status unknown = UnknownModel(fleet, request.spec().model());
    if (faults.empty()) return unknown;
    for (FieldViolation& fault : ErrorViolations(unknown)) faults.push_back(std::move(fault));
  }
  if (faults.empty()) return spec;  // OK, or an error without fields
  std::string message;
  for (const FieldViolation& fault : faults) {
    message += (message.empty() ? "" : "; ") + fault.field + " " + fault.description;
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", message, std::move(faults));
}

absl::StatusOr<ClassPlan> PlanOn(PlanMemo* memo, const v1::JobSpec& resolved, const v1::DataReport* report,
                                 const ModelShape& shape, const FleetView::Class& device_class) {
  const DeviceFacts& facts = device_class.facts;
  const int64_t total_steps = TotalSteps(resolved, report);
  ClassPlan out;
  LH_ASSIGN_OR_RETURN(out.train, wire::TrainShapeOfSpec(resolved, report, facts));
  const PlanRequest request = RequestOf(resolved, shape, out.train, total_steps);
  const int64_t sequence_limit = SequenceLimit(resolved, shape);
  const std::string key = PlanMemo::KeyOf(request, facts, sequence_limit);
  std::shared_ptr<const v1::DeviceClassEstimate> known = memo->Find(key);
  if (known == nullptr) {
    auto answer = std::make_shared<v1::DeviceClassEstimate>();
    LH_RETURN_IF_ERROR(EstimateOn(memo->planner(), request, facts, sequence_limit, answer.get()));
    known = std::move(answer);
    memo->Put(key, known);
  }
  out.estimate = *known;
  out.estimate.set_workers(device_class.workers);
  v1::Estimate* const estimate = out.estimate.mutable_estimate();
  estimate->set_total_steps(total_steps);
  estimate->set_total_seconds(estimate->step_seconds() * static_cast<double>(total_steps));
  return out;
}

absl::Status ExceedsEveryDevice(const std::vector<v1::DeviceClassEstimate>& classes, int64_t asked_sequence_length) {
  std::string message =
      "the job fits on no registered device at max_sequence_length " + std::to_string(asked_sequence_length);
  std::vector<FieldViolation> per_class;
  for (const v1::DeviceClassEstimate& one : classes) {
    const std::string longest = one.longest_sequence_length() > 0 ? "the longest sequence that would fit is " +
                                                                        std::to_string(one.longest_sequence_length())
                                                                  : "no sequence length would fit";
    message += "; " + one.device_class() + ": " + one.why() + "; " + longest;
    per_class.push_back({"spec", one.device_class() + ": " + one.why() + "; " + longest});
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "EXCEEDS_EVERY_DEVICE", message, std::move(per_class));
}

}  // namespace longhaul::server
