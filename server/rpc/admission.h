// Whether a job may enter, and what it would cost: one translation of a spec for Create, validate_only and Estimate, on
// top of the code that places jobs (server/core/demands.h). Pure but for what a memo keeps: no store, no clock.
// Thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/error.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "server/core/demands.h"
#include "server/core/job.h"
#include "server/dispatcher.h"
#include "server/rpc/plan_memo.h"

namespace longhaul::server {

// The model of that name, or null.
const ModelEntry* FindModel(const FleetView& fleet, const std::string& name);
// INVALID_ARGUMENT MODEL_UNKNOWN with the nearest name.
absl::Status UnknownModel(const FleetView& fleet, const std::string& name);

// Everything of the request outside the spec: sizes of labels, metadata and names, unknown fields.
std::vector<FieldViolation> CheckCreateRequest(const v1::CreateFineTuneJobRequest& request);

// Every fault at once, of the request and of its spec: INVALID_ARGUMENT. Reason MODEL_UNKNOWN where that is the only
// one, INVALID_FIELD otherwise.
absl::Status CheckCreate(const v1::CreateFineTuneJobRequest& request, const FleetView& fleet);

// What a resolved spec costs on a class of devices. `report` null: before the validation.
struct ClassPlan {
  TrainShape train;
  v1::DeviceClassEstimate estimate;
};
// REQUIRES: `resolved` is resolved. Errors: INVALID_ARGUMENT where the spec cannot be a train shape.
absl::StatusOr<ClassPlan> PlanOn(PlanMemo* memo, const v1::JobSpec& resolved, const v1::DataReport* report,
                                 const ModelShape& shape, const FleetView::Class& device_class);

// FAILED_PRECONDITION EXCEEDS_EVERY_DEVICE: per class the bytes needed and there, by part, and the longest sequence.
absl::Status ExceedsEveryDevice(const std::vector<v1::DeviceClassEstimate>& classes, int64_t asked_sequence_length);

}  // namespace longhaul::server
