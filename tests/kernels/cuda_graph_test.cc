// Nothing inside a step waits or allocates: every op can be captured into a graph, and the graph replays its bits.
#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_exec.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

class Graph {
 public:
  // Captures what `ops` queues on the Exec's compute stream.
  Graph(const Exec& exec, const std::function<void()>& ops) : stream_(exec.cuda().compute.get()) {
    CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "Graph", "cudaStreamBeginCapture");
    ops();
    cudaGraph_t graph = nullptr;
    CheckCuda(cudaStreamEndCapture(stream_, &graph), "Graph", "cudaStreamEndCapture");
    CheckCuda(cudaGraphInstantiate(&executable_, graph, 0), "Graph", "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void Launch() { CheckCuda(cudaGraphLaunch(executable_, stream_), "Graph", "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

class GraphTest : public FloatTest {
 protected:
  Buffer Matrix(uint32_t seed) const { return Buffer::Random(GetParam(), kRows, kCols, seed); }
  static constexpr int64_t kRows = 32, kCols = 512, kHeads = 4, kHeadDim = 128;
};
INSTANTIATE_TEST_SUITE_P(Types, GraphTest, testing::ValuesIn(TestedTypes()), TypeName);

// Runs the ops directly, then captured, twice: `outputs` must be the same bytes each time. `ops` must set its outputs
// from inputs that it does not change.
void ExpectReplays(const Exec& exec, const std::vector<const Buffer*>& outputs, const std::function<void()>& ops) {
  const auto bytes = [&] {
    std::vector<TestVector<uint8_t>> all;
    for (const Buffer* b : outputs) {
      b->view();  // in flight
      all.push_back(b->bytes());
    }
    return all;
  };
  ops();
  const auto direct = bytes();
  Graph graph(exec, ops);
  for (int round = 0; round < 2; ++round) {
    for (const Buffer* b : outputs) Zero(exec, b->view());
    graph.Launch();
    EXPECT_TRUE(bytes() == direct) << "round " << round;
  }
}

TEST_P(GraphTest, ActivationOps) {
  const auto exec = MakeExec(1);
  const Buffer x = Matrix(1), dy = Matrix(2), up = Matrix(3), w = Buffer::Random(GetParam(), 1, kCols, 4);
  const Buffer head_w = Buffer::Random(GetParam(), 1, kHeadDim, 5);
  const Buffer cos = Buffer::Random(DType::kF32, kRows, kHeadDim / 2, 6), sin = cos;
  Buffer y = x, sum = x, dx = x, normed = x, dgate = x, dup = x, dropped = x, gathered = x;
  Buffer raw = x, turned = x, d_turned = x, d_rows = x;
  const Buffer d_stat = Buffer::Random(DType::kF32, kRows, kCols, 7);
  Buffer rstd(DType::kF32, kRows, 1), head_rstd(DType::kF32, kRows, kHeads);
  TestVector<int32_t> positions;
  for (int32_t i = 0; i < kRows; ++i) positions.push_back(kRows - 1 - i);
  const Rotation rotation{cos.view(), sin.view(), positions.data()};
  Shared<int64_t> count;
  const std::vector<const Buffer*> results = {&y,        &sum,  &dx,  &normed,    &dgate,  &dup,      &dropped,
                                              &gathered, &rstd, &raw, &head_rstd, &turned, &d_turned, &d_rows};
  ExpectReplays(*exec, results, [&] {
    Copy(*exec, x.view(), sum.view());
    AddRmsNorm(*exec, dy.view(), w.view(), 1e-5, sum.view(), y.view(), rstd.view());
    RmsNormBackward(*exec, dy.view(), sum.view(), w.view(), rstd.view(), false, dx.view());
    HeadRmsNorm(*exec, x.view(), head_w.view(), kHeads, 1e-6, normed.view(), head_rstd.view());
    Rope(*exec, normed.view(), kHeads, cos.view(), sin.view(), positions.data(), false);
    HeadRmsNormRope(*exec, x.view(), head_w.view(), kHeads, 1e-6, rotation, raw.view(), turned.view(), {});
    HeadRmsNormRopeBackward(*exec, dy.view(), x.view(), head_w.view(), kHeads, head_rstd.view(), rotation,
                            d_turned.view());
    RmsNormBackwardRows(*exec, d_stat.view(), sum.view(), w.view(), rstd.view(), positions.data(), d_rows.view());
    SwiGluBackward(*exec, dy.view(), x.view(), up.view(), dgate.view(), dup.view(), {});
    Add(*exec, dy.view(), dup.view());
    Dropout(*exec, x.view(), 9, 0, 0.25, dropped.view());
    GatherRows(*exec, x.view(), positions.data(), gathered.view());
    CountNonFinite(*exec, x.view(), count.get());
  });
  EXPECT_EQ(count.value(), 0);
}

TEST_P(GraphTest, LossAndUpdate) {
  const auto exec = MakeExec(1);
  const Buffer logits = Matrix(1), g = Buffer::Random(DType::kF32, 1, 5000, 2);
  const Buffer p_before = Buffer::Random(DType::kF32, 1, 5000, 3);
  Buffer gradient = logits, lse(DType::kF32, kRows, 1), p = p_before, m = p, v = p;
  TestVector<int32_t> labels;
  for (int32_t i = 0; i < kRows; ++i) labels.push_back(i % 5 == 0 ? kNotTrained : i);
  Shared<double> scale(0.25), sum;
  Shared<LossTotals> totals;
  Shared<UpdateState> state;
  state.value().learning_rate = 1e-3;
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.1, 1};
  // The state counts its steps, which the moments' bits show: it starts again in every round.
  const auto tensor_of = [](void* data, size_t bytes) {
    return MakeTensor(data, DType::kU8, 1, static_cast<int64_t>(bytes));
  };
  Shared<double> learning_rate(1e-3);
  ExpectReplays(*exec, {&gradient, &lse, &p, &m, &v}, [&] {
    Copy(*exec, logits.view(), gradient.view());
    Zero(*exec, tensor_of(totals.get(), sizeof(LossTotals)));
    LossTile(*exec, gradient.view(), labels.data(), scale.get(), lse.view(), totals.get());
    Copy(*exec, p_before.view(), p.view());
    Zero(*exec, m.view());
    Zero(*exec, v.view());
    Zero(*exec, tensor_of(state.get(), sizeof(UpdateState)));
    CheckCuda(cudaMemcpyAsync(state.get(), learning_rate.get(), sizeof(double), cudaMemcpyDefault,
                              exec->cuda().compute.get()),
              "test", "cudaMemcpyAsync");
    SumOfSquares(*exec, g.view(), sum.get());
    PrepareUpdate(*exec, config, sum.get(), &totals.get()->nats, state.get());
    AdamW(*exec, config, state.get(), p.view(), g.view(), m.view(), v.view());
  });
  EXPECT_EQ(state.value().steps, 1);
  EXPECT_EQ(state.value().skip, 0);
  EXPECT_EQ(state.value().learning_rate, 1e-3);
}

}  // namespace
}  // namespace longhaul::kernels
