// What a job takes on each device class at the three points of its memory plan (ENGINE.md section 1). The one place
// between model/'s plan and the scheduler: Create admits, Estimate answers, the dispatcher places and sends with it.
//
// device_share chooses the points that a job may start at:
//   WHOLE  whole, balanced or minimum: the largest that fits the moment the job starts. While other jobs wait that
//   could
//          run beside it, whole is left out (server/core/scheduler.h).
//   FIT    minimum
//   BYTES  whole, within device_share_bytes (of VRAM on a GPU, of host RAM on a CPU device)
// Pure, thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "model/memory_plan.h"
#include "server/core/job.h"

namespace longhaul::server {

// Everything of a job that its demand depends on.
struct PlanRequest {
  ModelShape model;
  TrainShape train;
  DeviceShare share = DeviceShare::kWhole;
  int64_t share_bytes = 0;
  int64_t total_steps = 0;  // 0 = not known yet
  // train.compute is left to the device: on each class FastestCompute of it.
  bool compute_of_device = false;
};
PlanRequest PlanRequestOf(const Job& job);
// The train shape on a device.
TrainShape TrainOn(const PlanRequest& request, const DeviceFacts& facts);

// Turns shapes and facts into demands. The real one is MemoryPlanner(); tests and the simulator hand in their own.
class Planner {
 public:
  virtual ~Planner() = default;
  // Where it does not fit: fits = false, why = the shortage by part; with `explain` also longest_sequence_length.
  virtual Demand Evaluate(const PlanRequest& request, const DeviceFacts& facts, PlanPoint point,
                          bool explain) const = 0;
  // The plan that the trainer executes, at the same point: its bytes are those of Evaluate.
  virtual absl::StatusOr<std::string> PlanJson(const PlanRequest& request, const DeviceFacts& facts,
                                               PlanPoint point) const = 0;
};
const Planner& MemoryPlanner();

// What the plan at `point` may take of a device: a share in bytes is never more than there is.
PlanBudget BudgetOf(const PlanRequest& request, const DeviceFacts& facts, PlanPoint point);

// Of one class, by PlanPoint - 1. Points that device_share leaves out do not fit, with an empty `why`.
using ClassDemands = std::array<Demand, 3>;
using JobDemands = std::map<std::string, ClassDemands>;  // by device class

inline const Demand& At(const ClassDemands& demands, PlanPoint point) {
  return demands[static_cast<size_t>(static_cast<int>(point) - 1)];
}

ClassDemands DemandsOn(const Planner& planner, const PlanRequest& request, const DeviceFacts& facts);

// The admission test of Create and Estimate: the smallest point that device_share allows, explained where it does not
// fit.
Demand AdmissionDemand(const Planner& planner, const PlanRequest& request, const DeviceFacts& facts);

}  // namespace longhaul::server
