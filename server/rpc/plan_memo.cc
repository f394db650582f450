#include "server/rpc/plan_memo.h"

#include <utility>

#include "base/limits.h"
#include "server/core/codec.h"

namespace longhaul::server {

std::string PlanMemo::KeyOf(const PlanRequest& request, const DeviceFacts& facts, int64_t sequence_limit) {
  // The texts before the numbers say themselves where they end.
  return EncodeShapes(request.model, request.train) + EncodeFacts(facts) + "/" +
         std::to_string(static_cast<int>(request.share)) + "/" + std::to_string(request.share_bytes) + "/" +
         std::to_string(sequence_limit);
}

std::shared_ptr<const v1::DeviceClassEstimate> PlanMemo::Find(const std::string& key) const {
  std::lock_guard lock(mutex_);
  const auto found = plans_.find(key);
  return found == plans_.end() ? nullptr : found->second;
}

void PlanMemo::Put(const std::string& key, std::shared_ptr<const v1::DeviceClassEstimate> estimate) {
  std::lock_guard lock(mutex_);
  if (plans_.size() >= static_cast<size_t>(limits::kMaxPlansKept)) plans_.clear();
  plans_[key] = std::move(estimate);
}

}  // namespace longhaul::server
