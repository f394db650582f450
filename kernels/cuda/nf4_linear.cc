#include "kernels/cuda/nf4_linear.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/adapter_kernels.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {
int64_t PaddedRank(const std::vector<AdapterPart>& parts) {
  int64_t rank = 0;
  for (const AdapterPart& part : parts) rank += PaddedLoraRank(part.rank);
  return rank;
}

void DequantiseRows(const Exec& exec, const FrozenLinear& linear, int64_t first_row, int64_t rows, void* weight) {
  const LoraFold& fold = linear.fold;
  LH_CHECK(first_row >= 0 && rows > 0 && first_row + rows <= fold.out);
  int64_t begin = 0;  // of the stacked linear at hand
  for (const Nf4Weight& part : linear.quantised) {
    LH_CHECK(part.in == fold.in);
    const int64_t from = std::max(first_row, begin), to = std::min(first_row + rows, begin + part.out);
    if (from < to) {
      const Tensor view{Bf16At(weight, (from - first_row) * fold.weight_stride), DType::kBF16, to - from, fold.in,
                        fold.weight_stride};
      Nf4Dequantize(exec, part, from - begin, view);
    }
    begin += part.out;
  }
  LH_CHECK(begin == fold.out);
}

void FillWeight(const Exec& exec, const FrozenLinear& linear, void* weight) {
  DequantiseRows(exec, linear, 0, linear.fold.out, weight);
}

void PlaceAdapter(const Exec& exec, const LoraFold& fold, const std::vector<AdapterPart>& parts, void* weight) {
  LH_CHECK(PaddedRank(parts) == fold.rank);
  if (fold.rank == 0) return;
  LaunchPlaceAdapter(exec.cuda().compute.get(), fold, parts, 0, fold.out, Bf16At(weight, fold.sb_offset()),
                     Bf16At(weight, fold.a_offset()));
}

const void* PrepareWeight(const Exec& exec, const FrozenLinear& linear, const std::vector<AdapterPart>& parts,
                          void* buffer) {
  void* const weight = linear.cache != nullptr ? linear.cache : buffer;
  if (linear.cache == nullptr) FillWeight(exec, linear, buffer);
  PlaceAdapter(exec, linear.fold, parts, weight);
  return weight;
}

GemmShape TiledForwardGemm(const LoraFold& fold, int64_t rows, int64_t tile_out) {
  GemmShape shape = LoraKForward(fold, rows);
  shape.n = tile_out;
  return shape;
}

void TiledForward(const Exec& exec, const LtGemm& gemm, const FrozenLinear& linear,
                  const std::vector<AdapterPart>& parts, int64_t rows, int64_t tile_out, const void* x, void* y,
                  void* buffer, const GemmWorkspace& workspace) {
  const LoraFold& fold = linear.fold;
  LH_CHECK(tile_out > 0 && fold.out % tile_out == 0);
  const cudaStream_t stream = exec.cuda().compute.get();
  const GemmShape shape = TiledForwardGemm(fold, rows, tile_out);
  for (int64_t row = 0; row < fold.out; row += tile_out) {
    DequantiseRows(exec, linear, row, tile_out, buffer);
    if (fold.rank > 0) {
      LaunchPlaceAdapter(stream, fold, parts, row, tile_out, Bf16At(buffer, fold.sb_offset()), nullptr);
    }
    gemm.Run(stream, shape, 1, {x, buffer, Bf16At(y, row)}, workspace);
  }
}

}  // namespace longhaul::kernels::cuda
