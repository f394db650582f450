// Attention by cuDNN and by our own kernels against the formulas in double.
#include "kernels/cuda/sdpa.h"

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/kernels/cuda/sdpa_case.h"

namespace longhaul::kernels::cuda {
namespace {

// A call: name, shape, lengths of queries and (where the queries are the last rows) of keys.
struct Call {
  std::string name;
  SdpaShape shape;
  std::vector<int64_t> lengths;
  std::vector<int64_t> kv_lengths = {};
};

SdpaShape With(SdpaShape shape, void (*change)(SdpaShape*)) {
  change(&shape);
  return shape;
}

std::vector<Call> Calls() {
  std::vector<Call> calls;
  for (const int64_t dim : {64, 96, 128, 256}) {
    const std::string d = "d" + std::to_string(dim);
    calls.push_back({d + "_dense", DenseSdpa(2, 256, 2, 2, dim), {256, 256}});
    calls.push_back({d + "_grouped", DenseSdpa(1, 128, 8, 2, dim), {128}});
    calls.push_back({d + "_ragged", RaggedSdpa(6, 128, 256, 4, 2, dim), {1, 97, 30, 128}});
    calls.push_back({d + "_window", With(DenseSdpa(1, 256, 2, 1, dim), [](SdpaShape* s) { s->window = 50; }), {256}});
  }
  calls.push_back({"padded",
                   With(DenseSdpa(3, 200, 4, 1, 128), [](SdpaShape* s) { s->layout = SdpaLayout::kPadded; }),
                   {200, 1, 77}});
  calls.push_back({"ragged_window",
                   With(RaggedSdpa(4, 256, 512, 4, 2, 128), [](SdpaShape* s) { s->window = 33; }),
                   {256, 40, 130}});
  calls.push_back({"window_of_one", With(DenseSdpa(1, 128, 2, 2, 64), [](SdpaShape* s) { s->window = 1; }), {128}});
  calls.push_back({"one_buffer", WithOneQkvBuffer(DenseSdpa(1, 256, 4, 2, 128), 8 * 128 + 64), {256}});
  calls.push_back({"one_buffer_ragged", WithOneQkvBuffer(RaggedSdpa(4, 128, 256, 4, 2, 128), 8 * 128), {100, 128}});
  // Results with strides of their own.
  const SdpaShape one_buffer = WithOneQkvBuffer(RaggedSdpa(4, 128, 256, 4, 2, 128), 8 * 128);
  calls.push_back({"ragged_o_apart", With(one_buffer, [](SdpaShape* s) { s->o_stride += 64; }), {100, 128}});
  calls.push_back({"ragged_o_and_d_o_apart",
                   With(one_buffer, [](SdpaShape* s) { s->o_stride = s->d_o_stride += 64; }),
                   {100, 128}});
  calls.push_back({"ragged_keys_apart",
                   With(one_buffer,
                        [](SdpaShape* s) {
                          s->k_stride = s->v_stride = 2 * 128;
                          s->dk_stride = s->dv_stride = 2 * 128;
                        }),
                   {100, 128}});
  // These two the library gets wrong, and our kernels take them.
  calls.push_back({"ragged_dq_apart", With(one_buffer, [](SdpaShape* s) { s->dq_stride += 64; }), {100, 128}});
  calls.push_back(
      {"ragged_dk_apart", With(one_buffer, [](SdpaShape* s) { s->dk_stride = s->dv_stride = 2 * 128; }), {100, 128}});
  calls.push_back({"last_queries",
                   With(DenseSdpa(1, 256, 2, 1, 128),
                        [](SdpaShape* s) {
                          s->max_q = 128;
                          s->queries_last = true;
                        }),
                   {128},
                   {256}});
  calls.push_back({"last_queries_padded_window",
                   With(DenseSdpa(2, 256, 2, 1, 128),
                        [](SdpaShape* s) {
                          s->max_q = 64;
                          s->layout = SdpaLayout::kPadded;
                          s->queries_last = true;
                          s->window = 60;
                        }),
                   {64, 10},
                   {256, 140}});
  // A document of a pack by itself: what the engine does where it is deterministic.
  calls.push_back({"ragged_one_of_a_pack", RaggedSdpa(1, 256, 1024, 4, 2, 128), {230}});
  calls.push_back({"pack_of_many", RaggedSdpa(80, 64, 300, 2, 1, 64), std::vector<int64_t>(70, 4)});
  return calls;
}

std::string CallName(const testing::TestParamInfo<Call>& info) { return info.param.name; }

class SdpaTest : public testing::TestWithParam<Call> {
 protected:
  SdpaTest() {
    auto created = Cudnn::Create();
    EXPECT_TRUE(created.ok()) << created.status().message();
    cudnn_ = *std::move(created);
  }
  // Null where cuDNN has no kernel for it and that was asked for.
  std::unique_ptr<SdpaPlan> Plan(const SdpaShape& shape, const SdpaOptions& options) {
    auto plan = SdpaPlan::Create(cudnn_.get(), shape, options);
    if (!plan.ok()) {
      EXPECT_EQ(ErrorReason(plan.status()), "SDPA_UNSUPPORTED") << plan.status().message();
      return nullptr;
    }
    return *std::move(plan);
  }
  void RunAndCheck(const Call& call, std::unique_ptr<SdpaPlan> plan) {
    SdpaCase attention(call.shape, call.lengths, call.kv_lengths);
    attention.Prepare(std::move(plan), stream_.get());
    attention.Forward(stream_.get());
    attention.CheckForward();
    attention.Backward(stream_.get());
    attention.CheckBackward();
  }

  std::unique_ptr<Cudnn> cudnn_;
  Stream stream_;
};

TEST_P(SdpaTest, CudnnAgainstFormulas) {
  auto plan = Plan(GetParam().shape, {.only_cudnn = true});
  if (plan == nullptr) GTEST_SKIP() << "cuDNN has no kernel for it";
  RecordProperty("plan", plan->description());
  RunAndCheck(GetParam(), std::move(plan));
}

TEST_P(SdpaTest, ReferenceAgainstFormulas) {
  auto plan = Plan(GetParam().shape, {.only_reference = true});
  ASSERT_NE(plan, nullptr);
  EXPECT_TRUE(plan->is_reference());
  RunAndCheck(GetParam(), std::move(plan));
}

// The memory plan counts with the formulas.
TEST_P(SdpaTest, WorkspaceIsAsTheFormulaSays) {
  if (cudnn_->device().compute_capability / 10 != 9) GTEST_SKIP() << "the formulas are for compute capability 9.x";
  for (const bool deterministic : {false, true}) {
    SdpaShape shape = GetParam().shape;
    shape.deterministic = deterministic;
    auto plan = Plan(shape, {.only_cudnn = true});
    if (plan == nullptr) GTEST_SKIP() << "cuDNN has no kernel for it";
    EXPECT_EQ(plan->backward_workspace_bytes(), SdpaBackwardWorkspaceBytes(shape, cudnn_->device())) << SdpaKey(shape);
    const int64_t forward = SdpaForwardWorkspaceBytes(shape, cudnn_->device());
    EXPECT_LE(plan->forward_workspace_bytes(), forward) << SdpaKey(shape);
    EXPECT_GE(plan->forward_workspace_bytes(), forward - (16 << 10) - 512) << SdpaKey(shape);
  }
}

TEST_P(SdpaTest, DeterministicBackwardGivesTheSameBits) {
  SdpaShape shape = GetParam().shape;
  shape.deterministic = true;
  for (const bool reference : {false, true}) {
    auto plan = Plan(shape, {.only_reference = reference, .only_cudnn = !reference});
    if (plan == nullptr) continue;
    SdpaCase attention(shape, GetParam().lengths, GetParam().kv_lengths);
    attention.Prepare(std::move(plan), stream_.get());
    attention.Forward(stream_.get());
    attention.Backward(stream_.get());
    attention.CheckBackward();
    const auto first = attention.GradientBytes();
    attention.workspace().Poison();
    attention.Backward(stream_.get());
    EXPECT_TRUE(first == attention.GradientBytes()) << attention.plan().description();
  }
}

INSTANTIATE_TEST_SUITE_P(Calls, SdpaTest, testing::ValuesIn(Calls()), CallName);

class SdpaPlanTest : public SdpaTest {};

TEST_F(SdpaPlanTest, ARefusedShapeFallsBackAndSaysSo) {
  // Not a multiple of 128 rows.
  const SdpaShape shape = DenseSdpa(1, 100, 2, 1, 64);
  auto refused = SdpaPlan::Create(cudnn_.get(), shape, {.only_cudnn = true});
  EXPECT_EQ(ErrorReason(refused.status()), "SDPA_UNSUPPORTED");
  auto plan = Plan(shape, {});
  ASSERT_NE(plan, nullptr);
  EXPECT_TRUE(plan->is_reference());
  EXPECT_NE(plan->description().find("multiples of 128"), std::string::npos) << plan->description();
  RunAndCheck({"", shape, {100}}, std::move(plan));
}

TEST_F(SdpaPlanTest, DqMayTakeThePlaceOfQueriesAndOutputs) {
  for (const bool reference : {false, true}) {
    const SdpaShape shape = DenseSdpa(1, 256, 4, 2, 128);
    auto plan = Plan(shape, {.only_reference = reference, .only_cudnn = !reference});
    if (plan == nullptr) continue;
    SdpaCase attention(shape, {256});
    attention.Prepare(std::move(plan), stream_.get());
    attention.Forward(stream_.get());
    attention.Backward(stream_.get());
    const std::vector<uint8_t> apart = attention.dq().bytes();
    SdpaBuffers buffers = attention.buffers();
    for (void* const place : {buffers.o, const_cast<void*>(buffers.q)}) {
      const std::vector<uint8_t> held = attention.q().bytes();
      attention.Forward(stream_.get());
      buffers.dq = place;
      attention.plan().Backward(stream_.get(), buffers, attention.workspace().data());
      stream_.Synchronize();
      std::vector<uint8_t> together(apart.size());
      CheckCuda(cudaMemcpy(together.data(), place, together.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
      // Not deterministic: cuDNN adds dq in any order in f32, which a bf16 may show in its last bit.
      const auto* const a = reinterpret_cast<const __nv_bfloat16*>(apart.data());
      const auto* const b = reinterpret_cast<const __nv_bfloat16*>(together.data());
      for (size_t i = 0; i < apart.size() / 2; ++i) {
        ASSERT_NEAR(ToDouble(a[i]), ToDouble(b[i]), 0x1p-7 * std::abs(ToDouble(a[i])) + 1e-5) << i;
      }
      attention.q().Upload();
    }
  }
}

TEST_F(SdpaPlanTest, OnePlanServesEveryPackInAGraph) {
  const SdpaShape shape = RaggedSdpa(8, 256, 512, 4, 2, 128);
  // Captured with one pack, replayed with another: the index is read on the device.
  SdpaCase captured(shape, {256, 256});
  captured.Prepare(Plan(shape, {}), stream_.get());
  captured.Forward(stream_.get());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CheckCuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "begin capture");
  captured.plan().Forward(stream_.get(), captured.buffers(), captured.workspace().data());
  captured.plan().Backward(stream_.get(), captured.buffers(), captured.workspace().data());
  CheckCuda(cudaStreamEndCapture(stream_.get(), &graph), "end capture");
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{256, 256}, {3, 200, 120, 1, 60}, {512 / 8, 64}}) {
    captured.Repack(lengths, stream_.get());
    CheckCuda(cudaGraphLaunch(executable, stream_.get()), "launch");
    stream_.Synchronize();
    captured.CheckForward();
    captured.CheckBackward();
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace longhaul::kernels::cuda
