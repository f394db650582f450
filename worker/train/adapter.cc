#include "worker/train/adapter.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"

namespace longhaul::train {
namespace {

using kernels::DType;
using kernels::Tensor;

std::vector<LoraTarget> TargetsOf(uint32_t targets, FusedLinear linear) {
  std::vector<LoraTarget> all;
  switch (linear) {
    case FusedLinear::kQkv:
      all = {LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV};
      break;
    case FusedLinear::kO:
      all = {LoraTarget::kO};
      break;
    case FusedLinear::kGateUp:
      all = {LoraTarget::kGate, LoraTarget::kUp};
      break;
    case FusedLinear::kDown:
      all = {LoraTarget::kDown};
      break;
  }
  std::erase_if(all, [targets](LoraTarget t) { return !HasTarget(targets, t); });
  return all;
}

int64_t OutBegin(const ModelShape& s, LoraTarget target) {
  switch (target) {
    case LoraTarget::kK:
      return s.q_dim();
    case LoraTarget::kV:
      return s.q_dim() + s.kv_dim();
    case LoraTarget::kUp:
      return s.intermediate;
    default:
      return 0;
  }
}

template <typename T>
void InitializeModule(const LoraModule& module, int64_t rank, uint64_t seed, T* master) {
  const uint64_t key = CounterBits(
      seed, 0x4c6f5241u + static_cast<uint64_t>(module.layer) * kLoraTargets + static_cast<uint64_t>(module.target));
  const double bound = 1.0 / std::sqrt(static_cast<double>(module.in));
  for (int64_t i = 0; i < rank * module.in; ++i) {
    const double uniform = 2.0 * CounterUniform(key, static_cast<uint64_t>(i)) - 1.0;
    master[module.a_offset + i] = static_cast<T>(static_cast<float>(bound * uniform));
  }
  std::fill(master + module.b_offset, master + module.b_offset + module.out * rank, T{0});
}

}  // namespace

Adapter::Adapter(const EngineMemory& memory) : memory_(memory) {
  const MemoryPlan& plan = memory.plan();
  params_ = AdapterParams(plan.shape, plan.train);
  rank_ = plan.train.lora_rank;
  const auto array = [&](const char* region) {
    return memory.Has(region) ? memory.StatMatrix(region, 1, params_)
                              : Tensor{nullptr, memory.stat_dtype(), 1, params_, params_};
  };
  master_ = array("adapter.master");
  grad_ = array("adapter.grad");
  moment1_ = array("adapter.m1");
  moment2_ = array("adapter.m2");
  host_ = {master_, moment1_, moment2_};
  if (memory.Has("adapter.host")) {
    const int64_t copied = plan.choices.host_optimizer ? 1 : 3;
    const int64_t bytes = memory.BytesOrZero("adapter.host") / copied;
    Tensor* const copies[] = {&host_.master, &host_.moment1, &host_.moment2};
    for (int64_t i = 0; i < copied; ++i) *copies[i] = memory.StatMatrix("adapter.host", 1, params_, i * bytes);
  }
  int64_t offset = 0;
  groups_.reserve(static_cast<size_t>(plan.shape.layers * kFusedLinears));
  for (int64_t layer = 0; layer < plan.shape.layers; ++layer) {
    for (int i = 0; i < kFusedLinears; ++i) {
      const FusedLinear linear = static_cast<FusedLinear>(i);
      for (LoraTarget target : TargetsOf(plan.train.lora_targets, linear)) {
        modules_.push_back(
            {layer, target, LoraTargetIn(plan.shape, target), LoraTargetOut(plan.shape, target), offset, 0});
        offset += rank_ * modules_.back().in;
      }
      const size_t first = modules_.size() - static_cast<size_t>(TargetsInGroup(plan.train.lora_targets, linear));
      for (size_t m = first; m < modules_.size(); ++m) {
        modules_[m].b_offset = offset;
        offset += rank_ * modules_[m].out;
      }
      AddGroup(plan, layer, linear);
    }
  }
  LH_CHECK(offset == params_);
}

Tensor Adapter::View(const Tensor& all, int64_t offset, int64_t rows, int64_t cols) const {
  void* const data = all.data == nullptr ? nullptr : all.as<char>() + offset * kernels::DTypeBytes(all.dtype);
  return kernels::MakeTensor(data, all.dtype, rows, cols);
}

void Adapter::AddGroup(const MemoryPlan& plan, int64_t layer, FusedLinear linear) {
  LoraGroup group;
  group.rank = rank_;
  group.count = TargetsInGroup(plan.train.lora_targets, linear);
  if (group.count > 0) {
    const size_t first = modules_.size() - static_cast<size_t>(group.count);
    const int64_t in = modules_[first].in;
    group.a = View(master_, modules_[first].a_offset, group.count * rank_, in);
    group.grad_a = View(grad_, modules_[first].a_offset, group.count * rank_, in);
    for (int64_t i = 0; i < group.count; ++i) {
      const LoraModule& module = modules_[first + static_cast<size_t>(i)];
      LH_CHECK(module.layer == layer);
      group.members[i] = {module.target, View(master_, module.b_offset, module.out, rank_),
                          View(grad_, module.b_offset, module.out, rank_), OutBegin(plan.shape, module.target),
                          module.out};
    }
  }
  groups_.push_back(group);
}

void Adapter::Download() const {
  if (host_.master.data == master_.data) return;
  const kernels::Exec& exec = memory_.exec();
  exec.Download(host_.master.data, master_.data, master_.bytes());
  if (host_.moment1.data != moment1_.data) {
    exec.Download(host_.moment1.data, moment1_.data, moment1_.bytes());
    exec.Download(host_.moment2.data, moment2_.data, moment2_.bytes());
  }
  exec.Synchronize();
}

void Adapter::Upload() const {
  if (host_.master.data == master_.data) return;
  const kernels::Exec& exec = memory_.exec();
  exec.Upload(master_.data, host_.master.data, master_.bytes());
  if (host_.moment1.data != moment1_.data) {
    exec.Upload(moment1_.data, host_.moment1.data, moment1_.bytes());
    exec.Upload(moment2_.data, host_.moment2.data, moment2_.bytes());
  }
  exec.Synchronize();
}

void Adapter::Initialize(uint64_t seed) {
  for (const LoraModule& module : modules_) {
    if (master_.dtype == DType::kF64) {
      InitializeModule(module, rank_, seed, host_.master.as<double>());
    } else {
      InitializeModule(module, rank_, seed, host_.master.as<float>());
    }
  }
  if (host_.master.data == master_.data) return;
  memory_.exec().Upload(master_.data, host_.master.data, master_.bytes());
  memory_.exec().Synchronize();
}

}  // namespace longhaul::train
