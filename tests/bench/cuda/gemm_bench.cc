// Products of the sizes of real models: by heuristics, by timing, and the library called with nothing chosen.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/plain_gemm.h"
#include "kernels/shapes/lora_fold.h"
#include "tests/bench/cuda/bench_support.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = 64 << 20;
constexpr int64_t kTokens[] = {4096, 16384};

template <typename T>
T Require(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "cuda_lib_bench: %s\n", std::string(value.status().message()).c_str());
  std::exit(1);
}

struct Bench {
  cudaStream_t stream;
  std::unique_ptr<LtGemm> gemm;
  BenchBuffer memory;
  GemmWorkspace workspace() const { return {memory.at(), kWorkspaceBytes}; }

  explicit Bench(cudaStream_t on)
      : stream(on), gemm(Require(LtGemm::Create(kWorkspaceBytes))), memory(BenchBuffer::Zeros(kWorkspaceBytes)) {}

  // Picks by timing; what follows runs that.
  void Tune(const GemmShape& shape, const GemmOperands& at) {
    Require(gemm->PlanTimed(stream, shape, at, workspace()));
  }
  void Run(const GemmShape& shape, const GemmOperands& at, float alpha = 1) const {
    gemm->Run(stream, shape, alpha, at, workspace());
  }
  void Report(const BenchLinear& linear, const char* pass, int64_t tokens, const GemmShape& shape,
              const GemmOperands& at) {
    const auto line = [&](const char* choice, const BenchTime& time) {
      JsonLine json("gemm");
      json.Text("model", linear.model).Text("part", linear.part).Text("pass", pass).Count("tokens", tokens);
      json.Text("choice", choice).Rate(time, shape.flops());
      if (std::string(choice) != "raw") json.Text("algorithm", gemm->Describe(shape));
    };
    if (shape.input == GemmElement::kBF16) {
      const PlainGemm raw(shape);
      line("raw", Measure(stream, [&] { raw.Run(stream, at, workspace()); }));
    }
    Require(gemm->Plan(shape));
    line("heuristic", Measure(stream, [&] { Run(shape, at); }));
    Tune(shape, at);
    line("timed", Measure(stream, [&] { Run(shape, at); }));
  }
};

GemmShape ForwardShape(const BenchLinear& l, int64_t tokens) {
  return {
      .transpose_b = true, .m = tokens, .n = l.out, .k = l.in, .a_stride = l.in, .b_stride = l.in, .c_stride = l.out};
}

GemmShape BackwardShape(const BenchLinear& l, int64_t tokens) {
  return {.m = tokens, .n = l.in, .k = l.out, .a_stride = l.out, .b_stride = l.in, .c_stride = l.in};
}

// The time of a linear with its adapter, forward and backward, folded in each way, and of the linear alone.
void ReportLora(Bench& bench, const BenchLinear& linear, int64_t tokens, int64_t rank) {
  const LoraFold fold = MakeLoraFold(linear.out, linear.in, rank * linear.stacked);
  const BenchBuffer weight = BenchBuffer::RandomBf16(fold.weight_bytes() / 2, 0.02);
  const BenchBuffer x = BenchBuffer::RandomBf16(tokens * fold.x_stride, 1);
  const BenchBuffer y = BenchBuffer::RandomBf16(tokens * fold.y_stride, 1);
  const BenchBuffer dx = BenchBuffer::Zeros(tokens * fold.dx_stride * 2);
  struct Product {
    GemmShape shape;
    GemmOperands at;
  };
  const void* const sb = weight.at(fold.sb_offset() * 2);
  const void* const a = weight.at(fold.a_offset() * 2);
  const auto u = [&] { return x.at(fold.u_offset() * 2); };
  const auto v = [&] { return y.at(fold.v_offset() * 2); };
  const Product base{LoraBaseForward(fold, tokens), {x.at(), weight.at(), y.at()}};
  const Product down{LoraDown(fold, tokens), {x.at(), a, u()}};
  const Product up{LoraUpAdd(fold, tokens), {u(), sb, y.at()}};
  const Product k_forward{LoraKForward(fold, tokens), {x.at(), weight.at(), y.at()}};
  const Product n_forward{LoraNForward(fold, tokens), {x.at(), weight.at(), y.at()}};
  const Product base_backward{LoraBaseBackward(fold, tokens), {y.at(), weight.at(), dx.at()}};
  const Product backward_down{LoraBackwardDown(fold, tokens), {y.at(), sb, v()}};
  const Product backward_up{LoraBackwardUpAdd(fold, tokens), {v(), a, dx.at()}};
  const Product k_backward{LoraKBackward(fold, tokens), {y.at(), weight.at(), dx.at()}};
  double base_ms = 0;
  const auto line = [&](const char* pass, const char* way, const std::vector<Product>& products) {
    for (const Product& product : products) bench.Tune(product.shape, product.at);
    const BenchTime time = Measure(bench.stream, [&] {
      for (const Product& product : products) bench.Run(product.shape, product.at);
    });
    if (std::string(way) == "base") base_ms = time.median_ms;
    JsonLine json("lora");
    json.Text("model", linear.model).Text("part", linear.part).Text("pass", pass).Text("way", way);
    json.Count("tokens", tokens).Count("rank", rank).Number("ms", time.median_ms);
    json.Number("over_base", time.median_ms / base_ms - 1);
  };
  line("forward", "base", {base});
  line("forward", "separate", {base, down, up});
  line("forward", "k_augmented", {down, k_forward});
  line("forward", "n_augmented", {n_forward});
  line("backward", "base", {base_backward});
  line("backward", "separate", {base_backward, backward_down, backward_up});
  line("backward", "k_augmented", {backward_down, k_backward});
}

}  // namespace

void BenchGemm(cudaStream_t stream) {
  Bench bench(stream);
  for (const BenchLinear& linear : BenchLinears()) {
    const BenchBuffer weight = BenchBuffer::RandomBf16(linear.out * linear.in, 0.02);
    for (const int64_t tokens : kTokens) {
      const BenchBuffer x = BenchBuffer::RandomBf16(tokens * linear.in, 1);
      const BenchBuffer y = BenchBuffer::RandomBf16(tokens * linear.out, 1);
      bench.Report(linear, "forward", tokens, ForwardShape(linear, tokens), {x.at(), weight.at(), y.at()});
      bench.Report(linear, "backward", tokens, BackwardShape(linear, tokens), {y.at(), weight.at(), x.at()});
    }
  }
}

void BenchFp8(cudaStream_t stream) {
  Bench bench(stream);
  const auto scale = bench.gemm->BestFp8Scale();
  if (!scale.ok()) return (void)JsonLine("fp8").Text("refused", std::string(scale.status().message()));
  for (const BenchLinear& linear : BenchLinears()) {
    const BenchBuffer weight = BenchBuffer::RandomE4M3(linear.out * linear.in);
    const BenchBuffer scales = BenchBuffer::RandomF32(std::max(linear.out, kTokens[1]));
    for (const int64_t tokens : kTokens) {
      const BenchBuffer x = BenchBuffer::RandomE4M3(tokens * linear.in);
      const BenchBuffer y = BenchBuffer::Zeros(tokens * linear.out * 2);
      GemmShape shape = ForwardShape(linear, tokens);
      shape.input = GemmElement::kE4M3;
      shape.scale = *scale;
      for (const bool fast : {true, false}) {
        shape.fast_accumulation = fast;
        bench.Report(linear, fast ? "e4m3 fast" : "e4m3", tokens, shape,
                     {x.at(), weight.at(), y.at(), scales.at<float>(), scales.at<float>()});
      }
    }
  }
}

void BenchLora(cudaStream_t stream) {
  Bench bench(stream);
  for (const BenchLinear& linear : BenchLinears()) {
    if (std::string(linear.model) == "qwen3-8b") continue;  // Llama's, a little smaller
    for (const int64_t tokens : kTokens) {
      for (const int64_t rank : {16, 32}) ReportLora(bench, linear, tokens, rank);
    }
  }
}

}  // namespace longhaul::kernels::cuda
