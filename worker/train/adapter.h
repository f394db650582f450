// The LoRA adapter: masters, gradients and both moments, each one contiguous array in the same order, so that norms,
// clipping and AdamW are single passes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"
#include "model/plan_layout.h"
#include "worker/train/memory.h"

namespace longhaul::train {

// LoRA targets that share an input, of one layer. Their A's are stacked, so x A^T of all of them is one product.
struct LoraGroup {
  int64_t rank = 0;
  int64_t count = 0;       // targets in the group; 0 = no LoRA here
  kernels::Tensor a;       // [count * rank, in]
  kernels::Tensor grad_a;  // [count * rank, in]; null data where the plan does not train
  struct Member {
    LoraTarget target;
    kernels::Tensor b;       // [out, rank]
    kernels::Tensor grad_b;  // [out, rank]
    int64_t out_begin = 0;   // first column in the fused linear's output
    int64_t out = 0;
  };
  Member members[3];
};

// One target of one layer, by element offsets into the arrays.
struct LoraModule {
  int64_t layer = 0;
  LoraTarget target = LoraTarget::kQ;
  int64_t in = 0;
  int64_t out = 0;
  int64_t a_offset = 0;  // [rank, in]
  int64_t b_offset = 0;  // [out, rank]
};

class Adapter {
 public:
  // `memory` outlives the adapter.
  explicit Adapter(const EngineMemory& memory);

  // PEFT's initialisation: A uniform in +-1/sqrt(in), B zero. A function of seed, layer, target and element.
  void Initialize(uint64_t seed);

  // Masters and moments in host memory, [1, params] each: the arrays themselves where they lie there (on a CPU; moments
  // where the plan's host_optimizer says so), else copies. Download fills those (and waits for all that was queued),
  // Upload sends them back.
  struct HostArrays {
    kernels::Tensor master, moment1, moment2;
  };
  const HostArrays& host() const { return host_; }
  void Download() const;
  void Upload() const;

  int64_t params() const { return params_; }
  int64_t rank() const { return rank_; }
  const std::vector<LoraModule>& modules() const { return modules_; }
  const LoraGroup& Group(int64_t layer, FusedLinear linear) const {
    return groups_[static_cast<size_t>(layer * kFusedLinears + static_cast<int>(linear))];
  }
  // All [1, params] of the statistics' type, in the Exec's memory. Null data where the plan does not train.
  const kernels::Tensor& master() const { return master_; }
  const kernels::Tensor& grad() const { return grad_; }
  const kernels::Tensor& moment1() const { return moment1_; }
  const kernels::Tensor& moment2() const { return moment2_; }

 private:
  void AddGroup(const MemoryPlan& plan, int64_t layer, FusedLinear linear);
  kernels::Tensor View(const kernels::Tensor& all, int64_t offset, int64_t rows, int64_t cols) const;

  const EngineMemory& memory_;
  int64_t params_ = 0;
  int64_t rank_ = 0;
  HostArrays host_;
  kernels::Tensor master_, grad_, moment1_, moment2_;
  std::vector<LoraModule> modules_;  // by layer, then target
  std::vector<LoraGroup> groups_;    // [layers * kFusedLinears]
};

}  // namespace longhaul::train
