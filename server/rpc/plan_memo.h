// Remembers what plans cost: what PlanOn (server/rpc/admission.h) answers takes some thirty memory plans, most of them
// to find the longest sequence, and the jobs of a team are much alike. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "server/core/demands.h"

namespace longhaul::server {

class PlanMemo {
 public:
  // Does not own.
  explicit PlanMemo(const Planner* planner) : planner_(*planner) {}

  const Planner& planner() const { return planner_; }
  // Everything that the answer depends on, as bytes. request.total_steps does not count: it changes no plan.
  static std::string KeyOf(const PlanRequest& request, const DeviceFacts& facts, int64_t sequence_limit);
  // Null: not known, or not any more.
  std::shared_ptr<const v1::DeviceClassEstimate> Find(const std::string& key) const;
  // At limits::kMaxPlansKept everything is forgotten first.
  void Put(const std::string& key, std::shared_ptr<const v1::DeviceClassEstimate> estimate);

 private:
  const Planner& planner_;
  mutable std::mutex mutex_;  // guards plans_
  absl::flat_hash_map<std::string, std::shared_ptr<const v1::DeviceClassEstimate>> plans_;
};

}  // namespace longhaul::server
