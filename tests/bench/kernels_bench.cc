// Rates of the CPU ops on the shapes of SmolLM2-135M (hidden 576, MLP 1536, 9 query and 3 key heads of 64, vocabulary
// 49,152). Threads from LONGHAUL_THREADS (2 where unset). GEMMs report FLOP/s, passes over memory bytes/s.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "base/check.h"
#include "dnnl.h"
#include "kernels/exec.h"
#include "kernels/ops.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kHidden = 576, kMlp = 1536, kVocab = 49152, kTokens = 1024, kHeads = 9, kKvHeads = 3, kHeadDim = 64;

int Threads() {
  const char* const text = std::getenv("LONGHAUL_THREADS");
  return text == nullptr ? 2 : std::atoi(text);
}

std::unique_ptr<Exec> MakeExec(GemmType type = GemmType::kF32) {
  auto created = Exec::CreateCpu(Threads(), type, /*pin=*/false);
  LH_CHECK(created.ok(), std::string(created.status().message()));
  return std::move(created).value();
}

// Random numbers: zeros are faster than real data on some processors.
struct Matrix {
  Matrix(int64_t rows, int64_t cols) : data(static_cast<size_t>(rows * cols)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& value : data) value = normal(generator);
    view = MakeTensor(data.data(), DType::kF32, rows, cols);
  }
  std::vector<float> data;
  Tensor view;
};

void ReportFlops(benchmark::State& state, double flops) {
  state.counters["flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

void ReportBytes(benchmark::State& state, double bytes) {
  state.counters["bytes"] =
      benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

void* Aligned(std::vector<uint8_t>& storage) {
  const auto address = reinterpret_cast<uintptr_t>(storage.data());
  return storage.data() + (64 - address % 64) % 64;
}

// Arguments: rows, in, out, backward.
void Frozen(benchmark::State& state, GemmType type, bool packed) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const bool backward = state.range(3) != 0;
  if (type == GemmType::kBF16 && !ProbeCpu().has_bf16) {
    state.SkipWithError("this CPU has no bf16");
    return;
  }
  const auto exec = MakeExec(type);
  const Matrix x(rows, backward ? out : in), y(rows, backward ? in : out), w(out, in);
  FrozenWeight weight{out, in, DType::kF32, false, w.view.data, w.view.data};
  std::vector<uint8_t> packed_forward, packed_backward;
  if (packed) {
    packed_forward.resize(static_cast<size_t>(PackedWeightBytes(*exec, out, in, false)) + 64);
    packed_backward.resize(static_cast<size_t>(PackedWeightBytes(*exec, out, in, true)) + 64);
    weight = {out,
              in,
              type == GemmType::kBF16 ? DType::kBF16 : DType::kF32,
              true,
              Aligned(packed_forward),
              Aligned(packed_backward)};
    PackWeight(*exec, w.view, weight);
  }
  std::vector<uint8_t> scratch(static_cast<size_t>(FrozenGemmScratchBytes(type, rows, out, in)));
  for (auto _ : state) {
    (backward ? FrozenBackward : FrozenForward)(*exec, x.view, weight, 0, y.view, scratch.data());
  }
  ReportFlops(state, 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out));
}

void FrozenShapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t backward : {0, 1}) {
    bench->Args({kTokens, kHidden, kHidden, backward});
    bench->Args({kTokens, kHidden, kHeadDim * kKvHeads, backward});
    bench->Args({kTokens, kHidden, kMlp, backward});
    bench->Args({kTokens, kMlp, kHidden, backward});
    bench->Args({256, kHidden, kVocab, backward});
  }
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(Frozen, f32_plain, GemmType::kF32, false)->Apply(FrozenShapes);
BENCHMARK_CAPTURE(Frozen, f32_packed, GemmType::kF32, true)->Apply(FrozenShapes);
BENCHMARK_CAPTURE(Frozen, bf16_packed, GemmType::kBF16, true)->Apply(FrozenShapes);

// The library's own threading, what the GEMMs above are to be compared with.
void LibrarySgemm(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const bool backward = state.range(3) != 0;
  const auto exec = MakeExec();
  const Matrix x(rows, backward ? out : in), y(rows, backward ? in : out), w(out, in);
  const int64_t n = y.view.cols, k = x.view.cols;
  for (auto _ : state) {
    dnnl_sgemm('N', backward ? 'N' : 'T', rows, n, k, 1, x.data.data(), k, w.data.data(), in, 0, y.view.as<float>(), n);
  }
  ReportFlops(state, 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out));
}
BENCHMARK(LibrarySgemm)->Apply(FrozenShapes);

// LoRA: u = x A^T (rank 16) and dA = v^T x over 1,024 tokens.
void LoraDown(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix x(kTokens, kHidden), a(16, kHidden), u(kTokens, 16);
  for (auto _ : state) Gemm(*exec, false, true, 1, x.view, a.view, 0, u.view);
  ReportFlops(state, 2.0 * kTokens * kHidden * 16);
}
void LoraUp(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix u(kTokens, 16), b(kHidden, 16), y(kTokens, kHidden);
  for (auto _ : state) Gemm(*exec, false, true, 1, u.view, b.view, 0, y.view);
  ReportFlops(state, 2.0 * kTokens * kHidden * 16);
}
void LoraGradient(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix x(kTokens, kHidden), v(kTokens, 16), da(16, kHidden);
  for (auto _ : state) Gemm(*exec, true, false, 1, v.view, x.view, 0, da.view);
  ReportFlops(state, 2.0 * kTokens * kHidden * 16);
}
BENCHMARK(LoraDown)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(LoraUp)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(LoraGradient)->UseRealTime()->Unit(benchmark::kMicrosecond);

// Arguments: documents, tokens each. FLOPs counted for the causal half alone.
void Attention(benchmark::State& state, bool backward) {
  const int64_t docs = state.range(0), length = state.range(1), rows = docs * length;
  const auto exec = MakeExec();
  const Matrix q(rows, kHeads * kHeadDim), k(rows, kKvHeads * kHeadDim), v(rows, kKvHeads * kHeadDim);
  const Matrix o(rows, kHeads * kHeadDim), lse(rows, kHeads), d_o(rows, kHeads * kHeadDim), dq(rows, kHeads * kHeadDim);
  const Matrix dk(rows, kKvHeads * kHeadDim), dv(rows, kKvHeads * kHeadDim);
  std::vector<int64_t> offsets;
  for (int64_t d = 0; d <= docs; ++d) offsets.push_back(d * length);
  const AttentionShape shape{kHeads, kKvHeads, kHeadDim, 0.125, offsets.data(), docs, length};
  std::vector<uint8_t> scratch(static_cast<size_t>(
      AttentionScratchBytes(DType::kF32, exec->threads(), kHeads, kKvHeads, kHeadDim, length, true)));
  AttentionForward(*exec, shape, q.view, k.view, v.view, o.view, lse.view, scratch.data());
  for (auto _ : state) {
    if (backward) {
      AttentionBackward(*exec, shape, d_o.view, q.view, k.view, v.view, o.view, lse.view, dq.view, dk.view, dv.view,
                        scratch.data());
    } else {
      AttentionForward(*exec, shape, q.view, k.view, v.view, o.view, lse.view, scratch.data());
    }
  }
  const auto pairs = static_cast<double>(docs * length * (length + 1) / 2);
  ReportFlops(state, (backward ? 10.0 : 4.0) * pairs * kHeads * kHeadDim);
}
void AttentionShapes(benchmark::internal::Benchmark* bench) {
  for (const auto& [docs, length] :
       std::vector<std::pair<int64_t, int64_t>>{{16, 64}, {2, 512}, {1, 1024}, {1, 4096}}) {
    bench->Args({docs, length});
  }
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(Attention, forward, false)->Apply(AttentionShapes);
BENCHMARK_CAPTURE(Attention, backward, true)->Apply(AttentionShapes);

void Norm(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix x(kTokens, kHidden), w(1, kHidden), y(kTokens, kHidden), rstd(kTokens, 1);
  for (auto _ : state) RmsNorm(*exec, x.view, w.view, 1e-5, y.view, rstd.view);
  ReportBytes(state, 2.0 * kTokens * kHidden * 4);
}
void NormBackward(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix x(kTokens, kHidden), w(1, kHidden), dy(kTokens, kHidden), dx(kTokens, kHidden), rstd(kTokens, 1);
  for (auto _ : state) RmsNormBackward(*exec, dy.view, x.view, w.view, rstd.view, false, dx.view);
  ReportBytes(state, 3.0 * kTokens * kHidden * 4);
}
void SwiGluForward(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix gate(kTokens, kMlp), up(kTokens, kMlp), y(kTokens, kMlp);
  for (auto _ : state) SwiGlu(*exec, gate.view, up.view, y.view);
  ReportBytes(state, 3.0 * kTokens * kMlp * 4);
}
void SwiGluGradient(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix dy(kTokens, kMlp), gate(kTokens, kMlp), up(kTokens, kMlp), dgate(kTokens, kMlp), dup(kTokens, kMlp);
  for (auto _ : state) SwiGluBackward(*exec, dy.view, gate.view, up.view, dgate.view, dup.view, {});
  ReportBytes(state, 5.0 * kTokens * kMlp * 4);
}
void RotaryPositions(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix x(kTokens, kHidden), cos(kTokens, kHeadDim / 2), sin(kTokens, kHeadDim / 2);
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < kTokens; ++i) positions.push_back(i);
  bool inverse = false;
  for (auto _ : state) {
    Rope(*exec, x.view, kHeads, cos.view, sin.view, positions.data(), inverse);
    inverse = !inverse;
    Scale(*exec, 0.5, x.view);  // the tables are not rotations: keeps the numbers finite
  }
  ReportBytes(state, 4.0 * kTokens * kHidden * 4);
}
void Loss(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix logits(256, kVocab);
  const std::vector<int32_t> labels(256, 17);
  for (auto _ : state) {
    LossTotals totals;
    const double scale = 1;
    LossTile(*exec, logits.view, labels.data(), &scale, {}, &totals);
    benchmark::DoNotOptimize(totals);
  }
  ReportBytes(state, 256.0 * kVocab * 4);
}
void Optimizer(benchmark::State& state) {
  const auto exec = MakeExec();
  const Matrix p(4096, 1152), g(4096, 1152), m(4096, 1152), v(4096, 1152);
  Scale(*exec, 0, v.view);
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.01, 0};
  const double sum_of_squares = 1;
  UpdateState update;
  update.learning_rate = 1e-4;
  for (auto _ : state) {
    PrepareUpdate(*exec, config, &sum_of_squares, nullptr, &update);
    AdamW(*exec, config, &update, p.view, g.view, m.view, v.view);
  }
  ReportBytes(state, 7.0 * 4096 * 1152 * 4);
}
BENCHMARK(Norm)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(NormBackward)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(SwiGluForward)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(SwiGluGradient)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(RotaryPositions)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(Loss)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(Optimizer)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace longhaul::kernels

BENCHMARK_MAIN();
