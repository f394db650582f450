// The cut cross entropy at Llama's sizes: tiles within 160 and 80 MiB, and negligible columns on logits that are like a
// text's (tests/kernels/cuda/text_like.h; seed and parameters in TextLike's defaults) with their errors.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "kernels/cuda/cce_kernels.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/cut_cross_entropy.h"
#include "tests/bench/cuda/bench_support.h"
#include "tests/kernels/cuda/text_like.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kRows = 16384, kHidden = 4096, kVocab = 128256;
constexpr int64_t kErrorTile = 512;  // rows whose gradients' error is taken together

template <typename T>
T Need(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "cuda_lib_bench: %s\n", std::string(value.status().message()).c_str());
  std::exit(1);
}

struct Data {
  BenchBuffer hidden = BenchBuffer::Zeros(kRows * kHidden * 2);
  BenchBuffer head = BenchBuffer::Zeros(kVocab * kHidden * 2);
  BenchBuffer labels = BenchBuffer::Zeros(kRows * 4);
  BenchBuffer d_hidden = BenchBuffer::Zeros(kRows * kHidden * 4);
  BenchBuffer mean_row = BenchBuffer::Zeros(kHidden * 4);
  BenchBuffer totals = BenchBuffer::Zeros(sizeof(LossTotals));
  BenchBuffer scale = BenchBuffer::Zeros(8);

  CceOperands Operands() const {
    return {
        hidden.at(),          head.at(),           labels.at<int32_t>(), scale.at<double>(), totals.at<LossTotals>(),
        d_hidden.at<float>(), mean_row.at<float>()};
  }
};

std::vector<float> Gradient(const Data& data) {
  std::vector<float> values(static_cast<size_t>(kRows * kHidden));
  Require(cudaMemcpy(values.data(), data.d_hidden.at(), values.size() * 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return values;
}

// |a - b| / |b|, of the worst tile of rows and of the mean over all rows.
void ReportErrors(const std::vector<float>& a, const std::vector<float>& b, JsonLine* json) {
  double worst = 0;
  std::vector<double> mean_off(kHidden, 0.0), mean(kHidden, 0.0);
  const auto norm = [](double off, double all) { return std::sqrt(off / all); };
  for (int64_t first = 0; first < kRows; first += kErrorTile) {
    double off = 0, all = 0;
    for (int64_t i = first * kHidden; i < (first + kErrorTile) * kHidden; ++i) {
      const double want = static_cast<double>(b[static_cast<size_t>(i)]);
      const double difference = static_cast<double>(a[static_cast<size_t>(i)]) - want;
      off += difference * difference;
      all += want * want;
      mean_off[static_cast<size_t>(i % kHidden)] += difference;
      mean[static_cast<size_t>(i % kHidden)] += want;
    }
    worst = std::max(worst, norm(off, all));
  }
  double off = 0, all = 0;
  for (size_t k = 0; k < mean.size(); ++k) {
    off += mean_off[k] * mean_off[k];
    all += mean[k] * mean[k];
  }
  json->Number("worst_tile_error", worst).Number("mean_error", norm(off, all));
}

// How much of the second product was left.
void ReportKept(const CceShape& shape, const BenchBuffer& workspace, JsonLine* json) {
  const CceLayout layout = CceWorkspace(shape, 0);
  std::vector<int32_t> counts(static_cast<size_t>(shape.tile_rows));
  FullState state;
  Require(cudaMemcpy(counts.data(), workspace.at(layout.counts), counts.size() * 4, cudaMemcpyDeviceToHost), "counts");
  Require(cudaMemcpy(&state, workspace.at(layout.state), sizeof(state), cudaMemcpyDeviceToHost), "state");
  double kept = 0;
  for (const int32_t count : counts) kept += count;
  json->Number("last_tile_kept", kept / static_cast<double>(counts.size() * kVocab));
  json->Number("rows_with_all_columns", static_cast<double>(state.count) / kRows);
}

// gemm_mib: what the products may use of the working set. `exact`: the gradient with all columns, null: do not compare.
// timed: products chosen by timing, else by heuristics as the engine does.
void Report(const Exec& exec, const Data& data, const char* logits, const CceShape& shape, int64_t gemm_mib,
            const std::vector<float>* exact, bool timed = true) {
  const std::unique_ptr<LtGemm> gemm = Need(LtGemm::Create(gemm_mib * kMiB));
  const std::unique_ptr<CutCrossEntropy> cce = Need(CutCrossEntropy::Create(gemm.get(), shape));
  const BenchBuffer workspace = BenchBuffer::Zeros(CceWorkspace(shape, gemm_mib * kMiB).bytes);
  const CceOperands operands = data.Operands();
  if (timed) {
    const absl::Status tuned = cce->Tune(exec, operands, workspace.at(), gemm_mib * kMiB);
    if (!tuned.ok()) return (void)JsonLine("loss").Text("refused", std::string(tuned.message()));
  }
  if (shape.negligible) cce->PrepareHead(exec, data.head.at(), data.mean_row.at<float>());
  const cudaStream_t stream = exec.cuda().compute.get();
  Require(cudaMemset(operands.totals, 0, sizeof(LossTotals)), "cudaMemset");
  Require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  cce->Run(exec, operands, workspace.at());
  Require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  LossTotals totals;
  Require(cudaMemcpy(&totals, operands.totals, sizeof(totals), cudaMemcpyDeviceToHost), "cudaMemcpy");
  const BenchTime time = Measure(stream, [&] { cce->Run(exec, operands, workspace.at()); });
  JsonLine json("loss");
  json.Text("logits", logits).Text("type", shape.logits == GemmElement::kBF16 ? "bf16" : "f32");
  json.Count("tile_rows", shape.tile_rows).Count("tile_cols", shape.tile_cols);
  json.Text("products", timed ? "timed" : "by heuristics")
      .Text("columns", shape.negligible ? "kept" : "all")
      .Number("mean_nats", totals.nats / kRows);
  // Useful: what all columns take.
  json.Rate(time, shape.flops()).Number("workspace_mib", static_cast<double>(cce->workspace_bytes()) / kMiB);
  if (shape.negligible) ReportKept(shape, workspace, &json);
  if (exact != nullptr) ReportErrors(Gradient(data), *exact, &json);
}

// The products alone: what the loss could reach.
void ReportProducts(const Exec& exec, const Data& data, const CceShape& shape) {
  constexpr int64_t kGemmBytes = 32 * kMiB;
  const std::unique_ptr<LtGemm> gemm = Need(LtGemm::Create(kGemmBytes));
  const BenchBuffer workspace = BenchBuffer::Zeros(CceWorkspace(shape, kGemmBytes).bytes);
  const std::unique_ptr<CutCrossEntropy> cce = Need(CutCrossEntropy::Create(gemm.get(), shape));
  const GemmShape first = CceLogitsGemm(shape, shape.tile_rows, shape.tile_cols, kHidden);
  const GemmShape second = CceGradientGemm(shape, shape.tile_rows, shape.tile_cols, false);
  const auto describe = [&] { return gemm->Describe(first) + "; " + gemm->Describe(second); };
  const std::string by_heuristics = describe();
  if (!cce->Tune(exec, data.Operands(), workspace.at(), kGemmBytes).ok()) return;
  const cudaStream_t stream = exec.cuda().compute.get();
  const CceLayout layout = CceWorkspace(shape, kGemmBytes);
  const GemmWorkspace scratch{workspace.at(layout.gemm), kGemmBytes};
  const GemmOperands first_at{data.hidden.at(), data.head.at(), workspace.at(layout.logits)};
  const GemmOperands second_at{workspace.at(layout.logits), data.head.at(), workspace.at(layout.d_sum)};
  const auto line = [&](const char* what, double flops, const std::function<void()>& work) {
    JsonLine json("loss_products");
    json.Text("what", what).Count("tile_rows", shape.tile_rows).Count("tile_cols", shape.tile_cols);
    json.Rate(Measure(stream, work), flops);
  };
  line("logits", first.flops(), [&] { gemm->Run(stream, first, 1, first_at, scratch); });
  line("gradient", second.flops(), [&] { gemm->Run(stream, second, 1, second_at, scratch); });
  JsonLine("loss_products").Text("by_heuristics", by_heuristics).Text("timed", describe());
}

CceShape Tiled(int64_t tile_rows, int64_t tile_cols) {
  CceShape shape = MakeCceShape(kRows, kHidden, kVocab, tile_rows);
  shape.tile_cols = tile_cols;
  return shape;
}

}  // namespace

void BenchLoss(cudaStream_t) {
  const std::unique_ptr<Exec> exec = Need(Exec::CreateCuda(0));
  const Data data;
  const double scale = 1.0 / kRows;
  Require(cudaMemcpy(data.scale.at(), &scale, sizeof(scale), cudaMemcpyHostToDevice), "cudaMemcpy");
  const TextLike text{.rows = kRows, .hidden = kHidden, .vocab = kVocab};
  TextLike flat = text;
  flat.slope = 0;
  flat.noise = 1;
  flat.boost_mean = flat.boost_deviation = 0;
  for (const bool is_flat : {true, false}) {
    FillTextLike(exec->cuda().compute.get(), is_flat ? flat : text, data.hidden.at(), data.head.at(),
                 data.labels.at<int32_t>());
    Require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    const char* const logits = is_flat ? "flat" : "text-like";
    if (is_flat) {
      for (const int64_t rows : {1024, 2048, 4096}) ReportProducts(*exec, data, Tiled(rows, kCceTileCols));
      for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{4096, kCceTileCols / 2},
                                       {2048, kCceTileCols / 2},
                                       {1024, kCceTileCols / 2},
                                       {512, kCceTileCols}}) {
        Report(*exec, data, logits, Tiled(rows, cols), 16, nullptr);
      }
      for (const int64_t rows : {2048, 1024}) {
        Report(*exec, data, logits, Tiled(rows, kCceTileCols), 16, nullptr, /*timed=*/false);
      }
    }
    CceShape shape = Tiled(2048, kCceTileCols);
    Report(*exec, data, logits, shape, 32, nullptr);
    const std::vector<float> exact = Gradient(data);
    shape.tile_rows = 1024;
    Report(*exec, data, logits, shape, 16, &exact);
    shape.logits = GemmElement::kF32;
    Report(*exec, data, logits, shape, 32, &exact);
    shape.logits = GemmElement::kBF16;
    shape.negligible = true;
    for (const int64_t rows : {1024, 2048}) {
      shape.tile_rows = rows;
      Report(*exec, data, logits, shape, 32, &exact);
    }
  }
}

}  // namespace longhaul::kernels::cuda
