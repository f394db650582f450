// Rates of the memory-bound CUDA ops on the shapes of Llama 3.1 8B (hidden 4096, MLP 14336, 32 query and 8 key heads of
// 128, vocabulary 128,256, LoRA rank 32), 16,384 tokens, random data. One JSON line an op: the bytes that it must move,
// the time of one call (best of some rounds), GB/s, and what share of the device's own copy rate that is, which is
// measured first. Run by hand: kernels_cuda_bench [PART OF AN OP'S NAME]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/half.h"
#include "kernels/cuda/bench_buffer.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/ops.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kTokens = 16'384, kHidden = 4096, kMlp = 14'336, kHeads = 32, kHeadDim = 128, kVocab = 128'256;
constexpr int64_t kLossRows = 512, kTileRows = 2048, kVocabTile = 16'896;
constexpr int64_t kAdapter = 83'886'080;  // rank 32 on every linear

class Bench {
 public:
  Bench(const Exec& exec, std::string filter) : exec_(exec), filter_(std::move(filter)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& value : noise_) value = normal(generator);
  }

  // A matrix of normal random numbers; of u8, random bytes.
  Tensor Random(DType dtype, int64_t rows, int64_t cols, int64_t gap = 0, float deviation = 1) {
    const int64_t stride = cols + gap, bytes = rows * stride * DTypeBytes(dtype);
    buffers_.push_back(std::make_unique<DeviceBuffer>(bytes));
    std::vector<uint8_t> pattern(noise_.size() * 4);
    int64_t pattern_bytes = 0;
    for (const float value : noise_) {
      const float scaled = value * deviation;
      if (dtype == DType::kBF16) {
        const uint16_t bits = FloatToBf16(scaled);
        std::memcpy(pattern.data() + pattern_bytes, &bits, 2);
      } else if (dtype == DType::kF32) {
        std::memcpy(pattern.data() + pattern_bytes, &scaled, 4);
      } else {
        pattern[static_cast<size_t>(pattern_bytes)] = static_cast<uint8_t>(static_cast<int>(value * 1000));
      }
      pattern_bytes += DTypeBytes(dtype);
    }
    char* const data = buffers_.back()->as<char>();
    for (int64_t at = 0; at < bytes; at += pattern_bytes) {
      exec_.Upload(data + at, pattern.data(), std::min(pattern_bytes, bytes - at));
    }
    exec_.Synchronize();
    return {data, dtype, rows, cols, stride};
  }
  template <typename T>
  T* Values(const std::vector<T>& values) {
    buffers_.push_back(std::make_unique<DeviceBuffer>(static_cast<int64_t>(values.size() * sizeof(T))));
    exec_.Upload(buffers_.back()->as<void>(), values.data(), buffers_.back()->bytes());
    exec_.Synchronize();
    return buffers_.back()->as<T>();
  }
  void Free() {
    exec_.Synchronize();
    buffers_.clear();
  }

  // Seconds of one call, of the fastest round.
  double Time(const std::function<void()>& call) const {
    return cuda::Measure(exec_.cuda().compute.get(), call).least_ms * 1e-3;
  }

  bool Wanted(const std::string& op) const { return op.find(filter_) != std::string::npos; }

  void Report(const std::string& op, const std::string& shape, double bytes, const std::function<void()>& call) const {
    if (!Wanted(op)) return;
    const double seconds = Time(call);
    const double rate = bytes / seconds;
    std::printf("{\"op\": \"%s\", \"shape\": \"%s\", \"mb\": %.1f, \"us\": %.2f, \"gb_s\": %.0f, \"of_copy\": %.3f}\n",
                op.c_str(), shape.c_str(), bytes * 1e-6, seconds * 1e6, rate * 1e-9, rate / copy_rate_);
    std::fflush(stdout);
  }

  // The better of the driver's copy and ours, over 1 GiB.
  void MeasureCopy() {
    const Tensor x = Random(DType::kBF16, 1 << 17, kHidden), y = Random(DType::kBF16, 1 << 17, kHidden);
    const double bytes = 2.0 * static_cast<double>(x.bytes());
    const double driver = bytes / Time([&] {
                            CheckCuda(cudaMemcpyAsync(y.data, x.data, static_cast<size_t>(x.bytes()),
                                                      cudaMemcpyDeviceToDevice, exec_.cuda().compute.get()),
                                      "copy", "cudaMemcpyAsync");
                          });
    const double ours = bytes / Time([&] { Copy(exec_, x, y); });
    copy_rate_ = std::max(driver, ours);
    const CudaDeviceFacts& facts = exec_.cuda().facts;
    std::printf(
        "{\"device\": \"%s\", \"multiprocessors\": %d, \"driver\": %d, \"runtime\": %d, "
        "\"copy_driver_gb_s\": %.0f, \"copy_ours_gb_s\": %.0f}\n",
        facts.name.c_str(), facts.multiprocessors, facts.driver_version, facts.runtime_version, driver * 1e-9,
        ours * 1e-9);
    Free();
  }

  const Exec& exec() const { return exec_; }

 private:
  const Exec& exec_;
  std::string filter_;
  std::vector<float> noise_ = std::vector<float>(1 << 20);
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
  double copy_rate_ = 0;
};

constexpr DType kBf16 = DType::kBF16, kF32 = DType::kF32;
constexpr double kRow = 2.0 * kTokens * kHidden;  // bytes of a [tokens, hidden] matrix
constexpr double kMlpBytes = 2.0 * kTokens * kMlp;

void Norms(Bench* b) {
  const Exec& exec = b->exec();
  const std::string shape = "16384 x 4096";
  const Tensor x = b->Random(kBf16, kTokens, kHidden), y = b->Random(kBf16, kTokens, kHidden);
  const Tensor delta = b->Random(kBf16, kTokens, kHidden, 0, 1e-3f);
  const Tensor w = b->Random(kBf16, 1, kHidden), rstd = b->Random(kF32, kTokens, 1);
  b->Report("RmsNorm", shape, 2 * kRow, [&] { RmsNorm(exec, x, w, 1e-5, y, rstd); });
  b->Report("AddRmsNorm", shape, 4 * kRow, [&] { AddRmsNorm(exec, delta, w, 1e-5, x, y, rstd); });
  b->Report("RmsNormBackward", shape, 3 * kRow, [&] { RmsNormBackward(exec, delta, x, w, rstd, false, y); });
  b->Report("RmsNormBackward accumulating", shape, 4 * kRow,
            [&] { RmsNormBackward(exec, delta, x, w, rstd, true, y); });
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < kTokens; ++i) ids.push_back(i);
  const int32_t* const rows = b->Values(ids);
  const Tensor d_hidden = b->Random(kF32, kTokens, kHidden, 0, 1e-3f);
  b->Report("RmsNormBackwardRows", shape, 4 * kRow, [&] { RmsNormBackwardRows(exec, d_hidden, x, w, rstd, rows, y); });
  const Tensor head_w = b->Random(kBf16, 1, kHeadDim), head_rstd = b->Random(kF32, kTokens, kHeads);
  b->Report("HeadRmsNorm", "16384 x 32 x 128", 2 * kRow,
            [&] { HeadRmsNorm(exec, x, head_w, kHeads, 1e-6, y, head_rstd); });
  b->Report("HeadRmsNormBackward", "16384 x 32 x 128", 3 * kRow,
            [&] { HeadRmsNormBackward(exec, delta, x, head_w, kHeads, head_rstd, y); });
  // The 576 columns of SmolLM2: a row is one warp's.
  const Tensor narrow = b->Random(kBf16, 131'072, 576), narrow_y = b->Random(kBf16, 131'072, 576);
  const Tensor narrow_w = b->Random(kBf16, 1, 576);
  b->Report("RmsNorm", "131072 x 576", 4.0 * 131'072 * 576,
            [&] { RmsNorm(exec, narrow, narrow_w, 1e-5, narrow_y, {}); });
  b->Free();
}

void Positions(Bench* b) {
  const Exec& exec = b->exec();
  const Tensor qkv = b->Random(kBf16, kTokens, 6144);
  const Tensor cos = b->Random(kF32, kTokens, kHeadDim / 2), sin = b->Random(kF32, kTokens, kHeadDim / 2);
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < kTokens; ++i) positions.push_back(i);
  const int32_t* const indices = b->Values(positions);
  const double tables = 8.0 * kTokens * kHeadDim / 2;
  b->Report("Rope", "16384 x 32 x 128 of 6144", 2 * kRow + tables,
            [&] { Rope(exec, qkv.Cols(0, kHidden), kHeads, cos, sin, indices, false); });
  b->Report("Rope", "16384 x 8 x 128 of 6144", kRow / 2 + tables,
            [&] { Rope(exec, qkv.Cols(kHidden, kHidden + 1024), 8, cos, sin, indices, true); });
  const Rotation rotation{cos, sin, indices};
  const Tensor raw = b->Random(kBf16, kTokens, kHidden), rstd = b->Random(kF32, kTokens, kHeads);
  const Tensor w = b->Random(kF32, 1, kHeadDim), q = qkv.Cols(0, kHidden);
  b->Report("HeadRmsNormRope", "16384 x 32 x 128 of 6144", 3 * kRow + tables,
            [&] { HeadRmsNormRope(exec, q, w, kHeads, 1e-6, rotation, raw, q, rstd); });
  b->Report("HeadRmsNormRopeBackward", "16384 x 32 x 128 of 6144", 3 * kRow + tables,
            [&] { HeadRmsNormRopeBackward(exec, q, raw, w, kHeads, rstd, rotation, q); });
  b->Free();
}

void Activations(Bench* b) {
  const Exec& exec = b->exec();
  const std::string shape = "16384 x 14336 of 28672";
  const Tensor gate_up = b->Random(kBf16, kTokens, 2 * kMlp);
  const Tensor gate = gate_up.Cols(0, kMlp), up = gate_up.Cols(kMlp, 2 * kMlp);
  const Tensor y = b->Random(kBf16, kTokens, kMlp), dy = b->Random(kBf16, kTokens, kMlp);
  b->Report("SwiGlu", shape, 3 * kMlpBytes, [&] { SwiGlu(exec, gate, up, y); });
  b->Report("GeGlu", shape, 3 * kMlpBytes, [&] { GeGlu(exec, gate, up, y); });
  const Tensor d_gate_up = b->Random(kBf16, kTokens, 2 * kMlp);
  const Tensor dgate = d_gate_up.Cols(0, kMlp), dup = d_gate_up.Cols(kMlp, 2 * kMlp);
  b->Report("SwiGluBackward", shape, 5 * kMlpBytes, [&] { SwiGluBackward(exec, dy, gate, up, dgate, dup, {}); });
  b->Report("SwiGluBackward with product", shape, 6 * kMlpBytes,
            [&] { SwiGluBackward(exec, dy, gate, up, dgate, dup, y); });
  b->Report("GeGluBackward", shape, 5 * kMlpBytes, [&] { GeGluBackward(exec, dy, gate, up, dgate, dup, {}); });
  b->Free();
}

void Elementwise(Bench* b) {
  const Exec& exec = b->exec();
  const std::string shape = "16384 x 4096";
  const Tensor x = b->Random(kBf16, kTokens, kHidden, 0, 1e-3f), y = b->Random(kBf16, kTokens, kHidden);
  const Tensor wide = b->Random(kF32, kTokens, kHidden);
  const Tensor table = b->Random(kBf16, kVocab, kHidden);
  std::mt19937 generator(1);
  std::vector<int32_t> ids, order;
  for (int32_t i = 0; i < kTokens; ++i) {
    ids.push_back(static_cast<int32_t>(generator() % kVocab));
    order.push_back(i);
  }
  std::shuffle(order.begin(), order.end(), generator);
  const int32_t *const indices = b->Values(ids), *const permutation = b->Values(order);
  int64_t* const count = b->Values(std::vector<int64_t>{0});
  b->Report("Add", shape, 3 * kRow, [&] { Add(exec, x, y); });
  b->Report("Scale", shape, 2 * kRow, [&] { Scale(exec, 1.0, y); });
  b->Report("Copy", shape, 2 * kRow, [&] { Copy(exec, x, y); });
  b->Report("Copy f32 to bf16", shape, 3 * kRow, [&] { Copy(exec, wide, y); });
  b->Report("Copy bf16 to f32", shape, 3 * kRow, [&] { Copy(exec, y, wide); });
  b->Report("Zero", shape, kRow, [&] { Zero(exec, y); });
  b->Report("GatherRows", "16384 of 128256 x 4096", 2 * kRow, [&] { GatherRows(exec, table, indices, y); });
  b->Report("ScatterRows", shape, 2 * kRow, [&] { ScatterRows(exec, x, permutation, y); });
  b->Report("Dropout", shape, 2 * kRow, [&] { Dropout(exec, x, 7, 0, 0.1, y); });
  b->Report("CountNonFinite", shape, kRow, [&] { CountNonFinite(exec, x, count); });
  b->Free();
}

void Losses(Bench* b) {
  const Exec& exec = b->exec();
  // The gradient replaces the logits, so later rounds see nearly flat ones: the same work.
  const Tensor logits = b->Random(kBf16, kLossRows, kVocab, 0, 4), lse = b->Random(kF32, kLossRows, 1);
  const Tensor logits_f32 = b->Random(kF32, kLossRows, kVocab, 0, 4);
  const int32_t* const labels = b->Values(std::vector<int32_t>(4096, 17));
  const double* const scale = b->Values(std::vector<double>{1});
  LossTotals* const totals = b->Values(std::vector<LossTotals>(1));
  const double bytes = 2.0 * kLossRows * kVocab;
  b->Report("LossTile", "512 x 128256", 2 * bytes, [&] { LossTile(exec, logits, labels, scale, lse, totals); });
  b->Report("LossTile without gradient", "512 x 128256", bytes,
            [&] { LossTile(exec, logits, labels, nullptr, lse, totals); });
  b->Report("LossTile f32", "512 x 128256", 4 * bytes, [&] { LossTile(exec, logits_f32, labels, scale, lse, totals); });
  const Tensor tile = b->Random(kBf16, kTileRows, kVocabTile, 0, 4), weights = b->Random(kBf16, kTileRows, kVocabTile);
  const LossRows rows{b->Random(kF32, kTileRows, 1), b->Random(kF32, kTileRows, 1), b->Random(kF32, kTileRows, 1)};
  const double tile_bytes = 2.0 * kTileRows * kVocabTile;
  BeginLoss(exec, rows);
  b->Report("UpdateLoss", "2048 x 16896", tile_bytes, [&] { UpdateLoss(exec, tile, 0, labels, rows, {}, {}); });
  b->Report("UpdateLoss with weights", "2048 x 16896", 2 * tile_bytes,
            [&] { UpdateLoss(exec, tile, 0, labels, rows, weights, {}); });
  b->Free();
}

void Optimizers(Bench* b) {
  const Exec& exec = b->exec();
  const std::string shape = "83.9M";
  const Tensor p = b->Random(kF32, 1, kAdapter), g = b->Random(kF32, 1, kAdapter), m = b->Random(kF32, 1, kAdapter);
  const Tensor v = b->Random(kF32, 1, kAdapter);
  const Moments8bit moments{b->Random(DType::kU8, 1, kAdapter), b->Random(DType::kU8, 1, kAdapter),
                            b->Random(kF32, 1, kAdapter / kMomentBlock), b->Random(kF32, 1, kAdapter / kMomentBlock)};
  Zero(exec, v);
  Zero(exec, moments.v_scale);
  double* const sum = b->Values(std::vector<double>{1});
  UpdateState* const state = b->Values(std::vector<UpdateState>(1));
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.01, 1};
  b->Report("SumOfSquares", shape, 4.0 * kAdapter, [&] { SumOfSquares(exec, g, sum); });
  b->Report("PrepareUpdate", "1", sizeof(UpdateState), [&] { PrepareUpdate(exec, config, sum, nullptr, state); });
  PrepareUpdate(exec, config, sum, nullptr, state);
  b->Report("AdamW", shape, 28.0 * kAdapter, [&] { AdamW(exec, config, state, p, g, m, v); });
  b->Report("AdamW8bit", shape, 16.0 * kAdapter, [&] { AdamW8bit(exec, config, state, p, g, moments); });
  b->Free();
}

void Nf4(Bench* b) {
  const Exec& exec = b->exec();
  struct Shape {
    const char* name;
    int64_t out, in, gap;
  };
  for (const Shape& s : {Shape{"14336 x 4096", kMlp, kHidden, 0}, Shape{"14336 x 4096 of 4160", kMlp, kHidden, 64},
                         Shape{"4096 x 14336", kHidden, kMlp, 0}, Shape{"4096 x 4096 (fits L2)", kHidden, kHidden, 0},
                         Shape{"28672 x 8192 (70B)", 28'672, 8192, 0}}) {
    const int64_t n = s.out * s.in, blocks = n / 64;
    Nf4Weight w;
    w.out = s.out;
    w.in = s.in;
    w.packed = b->Random(DType::kU8, 1, n / 2).as<uint8_t>();
    w.absmax = b->Random(kF32, 1, blocks).as<float>();
    const Tensor y = b->Random(kBf16, s.out, s.in, s.gap, 0.02f);
    // What no launch of this size can beat by much: the driver's copy of as many bytes.
    const Tensor from = b->Random(DType::kU8, 1, n * 5 / 4), to = b->Random(DType::kU8, 1, n * 5 / 4);
    b->Report("Nf4 copy of as many bytes", s.name, static_cast<double>(n) * 2.5, [&] {
      CheckCuda(cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToDevice,
                                exec.cuda().compute.get()),
                "copy", "cudaMemcpyAsync");
    });
    b->Report("Nf4Dequantize", s.name, static_cast<double>(n) * (2.5 + 4.0 / 64),
              [&] { Nf4Dequantize(exec, w, 0, y); });
    const Nf4Weight plain = w;
    w.absmax_codes = b->Random(DType::kU8, 1, blocks).as<uint8_t>();
    w.nested_absmax = b->Random(kF32, 1, blocks / 256).as<float>();
    w.nested_offset = b->Values(std::vector<float>{0.01f});
    b->Report("Nf4Dequantize nested", s.name, static_cast<double>(n) * (2.5 + 1.0 / 64),
              [&] { Nf4Dequantize(exec, w, 0, y); });
    if (s.gap == 0) {
      b->Report("Nf4Quantize", s.name, static_cast<double>(n) * (2.5 + 4.0 / 64), [&] { Nf4Quantize(exec, y, plain); });
      b->Report("Nf4NestAbsmax", s.name, static_cast<double>(blocks) * 9, [&] { Nf4NestAbsmax(exec, w, false); });
    }
    b->Free();
  }
}

int Run(const std::string& filter) {
  auto created = Exec::CreateCuda(0);
  if (!created.ok()) {
    std::fprintf(stderr, "kernels_cuda_bench: %s\n", std::string(created.status().message()).c_str());
    return 1;
  }
  try {
    Bench bench(**created, filter);
    bench.MeasureCopy();
    for (auto* part : {Norms, Positions, Activations, Elementwise, Losses, Optimizers, Nf4}) part(&bench);
  } catch (const CudaError& error) {
    std::fprintf(stderr, "kernels_cuda_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace longhaul::kernels

int main(int argc, char** argv) { return longhaul::kernels::Run(argc > 1 ? argv[1] : ""); }
