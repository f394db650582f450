// The plan is the allocation: what is mapped is what was predicted, nearly all of it is written, and no step allocates.
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <random>

#include "base/process.h"
#include "tests/worker/train/rig.h"
#include "worker/train/trainer.h"

// The linker's: where the program's code begins and ends.
extern "C" char __executable_start;
extern "C" char etext;

namespace {

std::atomic<bool> g_counting{false};
std::atomic<int64_t> g_allocations{0};

// Our own code is linked into the program, the GEMM library is not: it makes a small map of arguments in every call and
// frees it there, which no plan can change.
bool IsOurs(const void* caller) {
  const auto at = reinterpret_cast<uintptr_t>(caller);
  return at >= reinterpret_cast<uintptr_t>(&__executable_start) && at < reinterpret_cast<uintptr_t>(&etext);
}

void* CountedNew(size_t size, const void* caller) {
  if (g_counting.load(std::memory_order_relaxed) && IsOurs(caller)) {
    g_allocations.fetch_add(1, std::memory_order_relaxed);
  }
  void* const p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace

// Not inlined: the compiler would see a free() of what a new returned.
void* operator new(size_t size) { return CountedNew(size, __builtin_return_address(0)); }
void* operator new[](size_t size) { return CountedNew(size, __builtin_return_address(0)); }
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, size_t) noexcept { std::free(p); }

namespace longhaul::train {
namespace {

TEST(PlanAllocation, ScratchFormulasAreTheKernels) {
  for (ComputeType compute : {ComputeType::kF32, ComputeType::kBF16, ComputeType::kF64}) {
    for (int64_t length : {1, 15, 127, 128, 129, 700}) {
      for (int threads : {1, 2, 5}) {
        TrainShape train = TinyTrain(compute, 1, length);
        const ModelShape s = TinyShape();
        const kernels::DType dtype = compute == ComputeType::kF64 ? kernels::DType::kF64 : kernels::DType::kF32;
        for (bool backward : {false, true}) {
          EXPECT_EQ(PlanAttentionScratchBytes(s, train, threads, backward),
                    kernels::AttentionScratchBytes(dtype, threads, s.heads, s.kv_heads, s.head_dim, length, backward));
        }
        const auto type = compute == ComputeType::kBF16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32;
        EXPECT_EQ(PlanGemmScratchBytes(train, length, 67, 48), kernels::FrozenGemmScratchBytes(type, length, 67, 48));
      }
    }
  }
}

// Random configurations, dense micro-batches. The arena is what was predicted; pages that hold live, written bytes are
// at least 98% of it. Small arenas lose up to a page a region to rounding, so they are made of a few MiB at least.
TEST(PlanAllocation, HighWaterIsThePlanForRandomConfigurations) {
  std::mt19937 random(11);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  for (int i = 0; i < 60; ++i) {
    ModelShape s = TinyShape(draw(0, 1) == 1, draw(0, 1) == 1);
    s.layers = draw(1, 4);
    s.kv_heads = draw(1, 3);
    s.heads = s.kv_heads * draw(1, 3);
    s.head_dim = 16 * draw(1, 4);
    s.hidden = 16 * draw(4, 12);
    s.intermediate = 16 * draw(4, 20);
    s.vocab = draw(500, 3000);
    TrainShape train;
    train.base = draw(0, 1) == 1 ? BaseWeights::kNf4 : BaseWeights::kAsStored;
    train.lora_rank = draw(1, 24);
    train.lora_targets = static_cast<uint32_t>(draw(1, kAllLoraTargets));
    train.lora_dropout = draw(0, 3) == 0;
    train.batch_size = draw(1, 2);
    train.sequence_length = draw(64, 300);
    const PlanShare share = static_cast<PlanShare>(draw(0, 2));
    const auto plan = MakePlan(s, train, ThisCpu(static_cast<int>(draw(1, 2))), {0, 0, share});
    ASSERT_TRUE(plan.ok()) << plan.status();
    Rig rig(*plan);
    if (train.lora_dropout) rig.ops->SetDropout(0.1, 1);
    std::vector<int64_t> lengths(static_cast<size_t>(train.batch_size), train.sequence_length);
    TinyBatch batch(lengths, s.vocab);
    for (size_t t = 0; t + 1 < batch.labels.size(); ++t) batch.labels[t] = batch.ids[t + 1];
    batch.labels.back() = 0;
    rig.Step(batch.view(), 1e-3);
    UpdateAdapter(*rig.memory, *rig.adapter, Hyper{}, 1e-4, 1, true);
    EXPECT_EQ(rig.memory->arena().bytes(), plan->arena_bytes);
    EXPECT_GE(static_cast<double>(rig.memory->arena().high_water_bytes()),
              0.98 * static_cast<double>(plan->arena_bytes))
        << i << " " << MemoryPlanToJson(*plan);
    // Poison everything that is free to be anything at the start of a step; the step must not notice.
    const std::vector<double> before = Values(rig.adapter->grad());
    const double nats = rig.Step(batch.view(), 1e-3);
    const std::vector<double> gradient = Values(rig.adapter->grad());
    kernels::Zero(*rig.exec, rig.adapter->grad());
    for (const PlanRegion& region : plan->regions) {
      if ((region.live & kPhaseUpdate) != 0) continue;
      std::fill_n(static_cast<float*>(rig.memory->arena().Get(region.name)), region.bytes / 4, NAN);
    }
    EXPECT_EQ(rig.Step(batch.view(), 1e-3), nats);
    EXPECT_EQ(Values(rig.adapter->grad()), gradient);
  }
}

void ExpectNoAllocation(ComputeType compute, int threads) {
  SCOPED_TRACE(std::to_string(threads) + " threads");
  const MemoryPlan plan = TinyPlan(TinyShape(true), TinyTrain(compute, 2, 30), {1, 16, 16}, threads);
  Rig rig(plan);
  const TinyBatch large({30, 30});
  const TinyBatch ragged({7, 30, 1, 5});
  FixedBatches eval({TinyBatch({30, 11})}, 1);
  const KeepGoing go = Rig::Go;
  const auto step = [&](const TinyBatch& batch) {
    ASSERT_TRUE(rig.decoder->Forward(rig.ops->Bring(batch.view()), go));
    const TokenBatch view = batch.view();
    rig.loss->Run(view, rig.decoder->Stream(2, view.rows), 0.01, rig.decoder->DStream(view.rows));
    ASSERT_TRUE(rig.decoder->Backward(view, go));
    UpdateAdapter(*rig.memory, *rig.adapter, Hyper{}, 1e-3, 1, true);
  };
  step(large);
  step(ragged);
  // Before the first evaluation: it may need nothing that training did not.
  const int64_t high_water = rig.memory->arena().high_water_bytes();
  const int64_t heap = static_cast<int64_t>(mallinfo2().uordblks);
  g_allocations = 0;
  g_counting = true;
  step(large);
  step(ragged);
  Evaluate(rig.ops.get(), rig.decoder.get(), rig.loss.get(), &eval, 2, go);
  g_counting = false;
  EXPECT_EQ(g_allocations.load(), 0);
  // What the library frees may stay in the allocator's per-thread cache and count as used: small change. A buffer that
  // it kept for a new shape would be larger.
  EXPECT_LT(static_cast<int64_t>(mallinfo2().uordblks) - heap, int64_t{16} << 10);
  // Of several threads, one may get its first task late, and touch its scratch then.
  if (threads == 1) {
    EXPECT_EQ(rig.memory->arena().high_water_bytes(), high_water);
  }
}

TEST(PlanAllocation, NoStepAllocatesAndEvaluationNeedsNoMore) {
  for (const int threads : {1, 2}) {
    ExpectNoAllocation(ComputeType::kF32, threads);
    if (kernels::ProbeCpu().has_bf16) ExpectNoAllocation(ComputeType::kBF16, threads);
  }
}

}  // namespace
}  // namespace longhaul::train
