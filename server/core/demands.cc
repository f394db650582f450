#include "server/core/demands.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "model/memory_plan.h"

namespace longhaul::server {
namespace {

bool Allows(DeviceShare share, PlanPoint point) {
  switch (share) {
    case DeviceShare::kWhole:
      return true;
    case DeviceShare::kFit:
      return point == PlanPoint::kMinimum;
    case DeviceShare::kBytes:
      return point == PlanPoint::kWhole;
  }
  return false;
}

class MemoryPlannerImpl final : public Planner {
 public:
  Demand Evaluate(const PlanRequest& request, const DeviceFacts& facts, PlanPoint point, bool explain) const override {
    Demand demand;
    const PlanBudget budget = BudgetOf(request, facts, point);
    absl::StatusOr<MemoryPlan> plan = MakePlan(request.model, TrainOn(request, facts), facts, budget);
    if (!plan.ok()) {
      demand.why = std::string(plan.status().message());
      if (explain) {
        demand.longest_sequence_length = LongestFittingSequence(request.model, TrainOn(request, facts), facts, budget,
                                                                request.train.sequence_length);
      }
      return demand;
    }
    demand.fits = true;
    demand.longest_sequence_length = request.train.sequence_length;
    demand.device_bytes = plan->device_bytes_total;
    demand.host_bytes = plan->host_bytes_total;
    demand.disk_bytes = plan->disk_bytes;
    demand.cpu_threads = plan->choices.cpu_threads;
    demand.step_seconds = plan->step_seconds;
    demand.total_seconds = plan->step_seconds * static_cast<double>(request.total_steps);
    return demand;
  }

  absl::StatusOr<std::string> PlanJson(const PlanRequest& request, const DeviceFacts& facts,
                                       PlanPoint point) const override {
    LH_ASSIGN_OR_RETURN(const MemoryPlan plan,
                        MakePlan(request.model, TrainOn(request, facts), facts, BudgetOf(request, facts, point)));
    return MemoryPlanToJson(plan);
  }
};

}  // namespace

PlanBudget BudgetOf(const PlanRequest& request, const DeviceFacts& facts, PlanPoint point) {
  PlanBudget budget;
  budget.share = point == PlanPoint::kMinimum    ? PlanShare::kMinimum
                 : point == PlanPoint::kBalanced ? PlanShare::kBalanced
                                                 : PlanShare::kWhole;
  if (request.share == DeviceShare::kBytes) {
    int64_t& bytes = facts.kind == DeviceKind::kCpu ? budget.host_bytes : budget.device_bytes;
    const int64_t there = facts.kind == DeviceKind::kCpu ? facts.host_bytes : facts.device_bytes;
    bytes = std::min(request.share_bytes, there);
  }
  return budget;
}

PlanRequest PlanRequestOf(const Job& job) {
  return {job.model_shape,        job.train_shape, job.device_share,
          job.device_share_bytes, job.total_steps, job.compute_of_device};
}

TrainShape TrainOn(const PlanRequest& request, const DeviceFacts& facts) {
  TrainShape train = request.train;
  if (request.compute_of_device) train.compute = FastestCompute(facts);
  return train;
}

const Planner& MemoryPlanner() {
  static const MemoryPlannerImpl planner;
  return planner;
}

ClassDemands DemandsOn(const Planner& planner, const PlanRequest& request, const DeviceFacts& facts) {
  ClassDemands demands;
  for (const PlanPoint point : {PlanPoint::kMinimum, PlanPoint::kBalanced, PlanPoint::kWhole}) {
    if (!Allows(request.share, point)) continue;
    demands[static_cast<size_t>(static_cast<int>(point) - 1)] = planner.Evaluate(request, facts, point, false);
  }
  return demands;
}

Demand AdmissionDemand(const Planner& planner, const PlanRequest& request, const DeviceFacts& facts) {
  const PlanPoint point = request.share == DeviceShare::kBytes ? PlanPoint::kWhole : PlanPoint::kMinimum;
  return planner.Evaluate(request, facts, point, true);
}

}  // namespace longhaul::server
