// How fast GEMMs run here, for the plan's predictions and for benchmarks.
#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/exec.h"
#include "kernels/ops.h"

namespace longhaul::kernels {
namespace {

constexpr double kBudgetSeconds = 0.2;

// Random operands: on zeros some processors clock higher.
std::vector<float> RandomFloats(int64_t count, uint32_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31f;
  }
  return values;
}

// The best of the runs that fit into the budget, after one that is not counted.
double BestFlops(const GemmRateShape& shape, const std::function<void()>& run) {
  run();
  const auto start = std::chrono::steady_clock::now();
  double best_seconds = 1e30;
  for (double spent = 0; spent < kBudgetSeconds;) {
    const auto from = std::chrono::steady_clock::now();
    run();
    const auto now = std::chrono::steady_clock::now();
    best_seconds = std::min(best_seconds, std::chrono::duration<double>(now - from).count());
    spent = std::chrono::duration<double>(now - start).count();
  }
  return 2.0 * static_cast<double>(shape.rows) * static_cast<double>(shape.in) * static_cast<double>(shape.out) /
         best_seconds;
}

}  // namespace

double MeasureGemmFlops(int threads, GemmType type, const GemmRateShape& shape) {
  auto created = Exec::CreateCpu(threads, type, /*pin=*/false);
  LH_CHECK(created.ok(), std::string(created.status().message()));
  const Exec& exec = **created;
  std::vector<float> x = RandomFloats(shape.rows * shape.in, 1);
  std::vector<float> w = RandomFloats(shape.out * shape.in, 2);
  std::vector<float> y(static_cast<size_t>(shape.rows * shape.out));
  GrowingBuffer packed, scratch;
  void* const blocks = packed.Reserve(PackedWeightBytes(exec, shape.out, shape.in, false));
  const DType dtype = type == GemmType::kBF16 ? DType::kBF16 : DType::kF32;
  const FrozenWeight weight{shape.out, shape.in, dtype, true, blocks, nullptr};
  PackWeight(exec, MakeTensor(w.data(), DType::kF32, shape.out, shape.in), weight);
  void* const rounded =
      scratch.Reserve(std::max<int64_t>(1, FrozenGemmScratchBytes(type, shape.rows, shape.out, shape.in)));
  return BestFlops(shape, [&] {
    FrozenForward(exec, MakeTensor(x.data(), DType::kF32, shape.rows, shape.in), weight, 0,
                  MakeTensor(y.data(), DType::kF32, shape.rows, shape.out), rounded);
  });
}

double MeasureLibraryGemmFlops(int threads, GemmType type, const GemmRateShape& shape) {
  using Type = dnnl::memory::data_type;
  using Tag = dnnl::memory::format_tag;
  omp_set_num_threads(threads);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const Type operand = type == GemmType::kBF16 ? Type::bf16 : Type::f32;
  const dnnl::matmul::primitive_desc described(
      dnnl::matmul::desc({{shape.rows, shape.in}, operand, Tag::ab}, {{shape.in, shape.out}, operand, Tag::any},
                         {{shape.rows, shape.out}, Type::f32, Tag::ab}),
      engine);
  std::vector<float> x = RandomFloats(shape.rows * shape.in, 1);
  std::vector<float> w = RandomFloats(shape.out * shape.in, 2);
  dnnl::memory x_f32({{shape.rows, shape.in}, Type::f32, Tag::ab}, engine, x.data());
  dnnl::memory w_f32({{shape.in, shape.out}, Type::f32, Tag::ba}, engine, w.data());
  dnnl::memory source(described.src_desc(), engine), weights(described.weights_desc(), engine);
  dnnl::memory destination(described.dst_desc(), engine);
  dnnl::reorder(x_f32, source).execute(stream, x_f32, source);
  dnnl::reorder(w_f32, weights).execute(stream, w_f32, weights);
  stream.wait();
  const dnnl::matmul matmul(described);
  return BestFlops(shape, [&] {
    matmul.execute(stream, {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, destination}});
    stream.wait();
  });
}

}  // namespace longhaul::kernels
