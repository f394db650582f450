// The cut cross entropy at Llama's sizes: tiles within 160 and 80 MiB, three passes, and negligible columns on logits
// that are like a text's (tests/kernels/cuda/text_like.h; seed and parameters in TextLike's defaults).
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "base/units.h"
#include "kernels/cuda/cce_kernels.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/cut_cross_entropy.h"
#include "tests/bench/cuda/bench_support.h"
#include "tests/kernels/cuda/text_like.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kRows = 16384, kHidden = 4096, kVocab = 128256;

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
  BenchBuffer d_hidden = BenchBuffer::Zeros(kRows * kHidden * 2);
  BenchBuffer mean_row = BenchBuffer::Zeros(kHidden * 4);
  BenchBuffer totals = BenchBuffer::Zeros(sizeof(LossTotals));
  BenchBuffer scale = BenchBuffer::Zeros(8);

  CceOperands Operands() const {
    return {hidden.at(),   head.at(),           labels.at<int32_t>(), scale.at<double>(), totals.at<LossTotals>(),
            d_hidden.at(), mean_row.at<float>()};
  }
};

// gemm_mib: what the products may use of the working set.
void Report(const Exec& exec, const Data& data, const char* logits, const CceShape& shape, int64_t gemm_mib) {
  const std::unique_ptr<LtGemm> gemm = Need(LtGemm::Create(gemm_mib * kMiB));
  const std::unique_ptr<CutCrossEntropy> cce = Need(CutCrossEntropy::Create(gemm.get(), shape));
  const BenchBuffer workspace = BenchBuffer::Zeros(CceWorkspace(shape, gemm_mib * kMiB).bytes);
  const CceOperands operands = data.Operands();
  const absl::Status tuned = cce->Tune(exec, operands, workspace.at(), gemm_mib * kMiB);
  if (!tuned.ok()) return (void)JsonLine("loss").Text("refused", std::string(tuned.message()));
  if (shape.negligible) cce->PrepareHead(exec, data.head.at(), data.mean_row.at<float>());
  const cudaStream_t stream = exec.cuda().compute.get();
  Require(cudaMemset(operands.totals, 0, sizeof(LossTotals)), "cudaMemset");
  cce->Run(exec, operands, workspace.at());
  LossTotals totals;
  Require(cudaMemcpy(&totals, operands.totals, sizeof(totals), cudaMemcpyDeviceToHost), "cudaMemcpy");
  KeptState state;
  if (shape.negligible) {
    Require(cudaMemcpy(&state, workspace.at(CceWorkspace(shape, 0).state), sizeof(state), cudaMemcpyDeviceToHost),
            "cudaMemcpy");
  }
  const BenchTime time = Measure(stream, [&] { cce->Run(exec, operands, workspace.at()); });
  JsonLine json("loss");
  json.Text("logits", logits).Text("passes", shape.passes == CcePasses::kTwo ? "two" : "three");
  json.Text("type", shape.logits == GemmElement::kBF16 ? "bf16" : "f32").Count("tile_rows", shape.tile_rows);
  if (shape.passes == CcePasses::kThree) json.Count("tile_cols", shape.tile_cols);
  json.Text("columns", shape.negligible ? "kept" : "all").Number("mean_nats", totals.nats / kRows);
  // Useful: what two passes over all columns take.
  const double flops = 4.0 * kRows * kVocab * kHidden;
  json.Rate(time, flops).Count("workspace_bytes", cce->workspace_bytes());
  if (shape.negligible) {
    json.Number("last_tile_kept", static_cast<double>(state.kept) / kVocab).Count("last_tile_full", state.full);
  }
  if (shape.passes == CcePasses::kTwo) {
    json.Text("second_product", gemm->Describe(CceGradientGemm(shape, shape.tile_rows, shape.vocab)));
  }
}

// The products alone: what the loss could reach.
void ReportProducts(const Exec& exec, const Data& data, int64_t tile_rows) {
  const std::unique_ptr<LtGemm> gemm = Need(LtGemm::Create(64 * kMiB));
  const CceShape shape = TwoPassCce(kRows, kHidden, kVocab, tile_rows);
  const BenchBuffer workspace = BenchBuffer::Zeros(CceWorkspace(shape, 64 * kMiB).bytes);
  const std::unique_ptr<CutCrossEntropy> cce = Need(CutCrossEntropy::Create(gemm.get(), shape));
  if (!cce->Tune(exec, data.Operands(), workspace.at(), 64 * kMiB).ok()) return;
  const cudaStream_t stream = exec.cuda().compute.get();
  const CceLayout layout = CceWorkspace(shape, 64 * kMiB);
  const GemmWorkspace scratch{workspace.at(layout.gemm), 64 * kMiB};
  const GemmShape first = CceLogitsGemm(shape, tile_rows, kVocab), second = CceGradientGemm(shape, tile_rows, kVocab);
  const GemmOperands first_at{data.hidden.at(), data.head.at(), workspace.at(layout.logits)};
  const GemmOperands second_at{workspace.at(layout.logits), data.head.at(), data.d_hidden.at()};
  const auto line = [&](const char* what, double flops, const std::function<void()>& work) {
    JsonLine("loss_products").Text("what", what).Count("tile_rows", tile_rows).Rate(Measure(stream, work), flops);
  };
  line("logits", first.flops(), [&] { gemm->Run(stream, first, 1, first_at, scratch); });
  line("gradient", second.flops(), [&] { gemm->Run(stream, second, 1, second_at, scratch); });
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
      ReportProducts(*exec, data, 256);
      ReportProducts(*exec, data, 512);
      Report(*exec, data, logits, ThreePassCce(kRows, kHidden, kVocab, 1024, 8192), 16);
    }
    CceShape shape = TwoPassCce(kRows, kHidden, kVocab, 512);
    Report(*exec, data, logits, shape, 32);
    shape.tile_rows = 256;
    Report(*exec, data, logits, shape, 16);
    shape.logits = GemmElement::kF32;
    Report(*exec, data, logits, shape, 32);
    shape.logits = GemmElement::kBF16;
    shape.negligible = true;
    for (const int64_t rows : {256, 512, 1024}) {
      shape.tile_rows = rows;
      Report(*exec, data, logits, shape, 32);
    }
  }
}

}  // namespace longhaul::kernels::cuda
