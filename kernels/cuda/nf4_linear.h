// A frozen linear (or several that share their input, stacked) with its adapter, from NF4: the weight is dequantised
// into a buffer that all linears share, or lies in bf16 in a cache of its own, in both cases in the layout of
// lora_fold.h, so that one product does base and adapter. At 1K tokens and more on Hopper this beats a fused 4-bit
// product. Tests: tests/kernels/cuda/nf4_linear_test.cc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/lt_gemm.h"
#include "kernels/ops.h"
#include "kernels/shapes/lora_fold.h"

namespace longhaul::kernels::cuda {

// The adapter of one of the stacked linears: f32 masters in device memory, contiguous.
struct AdapterPart {
  const float* a = nullptr;  // [rank, in]
  const float* b = nullptr;  // [out, rank]
  int64_t rank = 0;          // as the user gave it, not padded; 0: none, a and b null
  int64_t out = 0;
  float scale = 0;  // s
};

inline constexpr int64_t kBf16Bytes = 2;
// The address of a bf16 matrix's element, counted from its first.
inline const void* Bf16At(const void* matrix, int64_t element) {
  return static_cast<const char*>(matrix) + element * kBf16Bytes;
}
inline void* Bf16At(void* matrix, int64_t element) { return static_cast<char*>(matrix) + element * kBf16Bytes; }

struct FrozenLinear {
  LoraFold fold;
  // Stacked: q, k, v; gate, up. Their out add up to fold.out, their in is fold.in. Not read where `cache` is not null.
  std::vector<Nf4Weight> quantised;
  // [out + rank, weight_stride] bf16, W filled once (FillWeight); null: W is dequantised for each use.
  void* cache = nullptr;
};

// fold.rank for these parts: each padded to kLoraRankUnit.
int64_t PaddedRank(const std::vector<AdapterPart>& parts);

// Rows [first_row, first_row + rows) of W to `weight`, which is row first_row in the fold's layout.
void DequantiseRows(const Exec& exec, const FrozenLinear& linear, int64_t first_row, int64_t rows, void* weight);
// All of W.
void FillWeight(const Exec& exec, const FrozenLinear& linear, void* weight);

// A and s B of `parts` (as many as there are linears stacked) into `weight` [out + rank, weight_stride], rounded to
// bf16; zeros in the padded ranks and outside B's blocks.
void PlaceAdapter(const Exec& exec, const LoraFold& fold, const std::vector<AdapterPart>& parts, void* weight);

// The weight with its adapter, ready for the fold's products: the cache, or `buffer` (fold.weight_bytes()) with W
// dequantised. The adapter is placed in either.
const void* PrepareWeight(const Exec& exec, const FrozenLinear& linear, const std::vector<AdapterPart>& parts,
                          void* buffer);

// y = [x, u] [W, sB]^T in tiles of `tile_out` rows of W, each of which is dequantised into `buffer` (tile_out rows)
// and multiplied while it lies in the L2 cache. x [rows, x_stride] holds u already (LoraDown). `b` is [out, rank] as
// PlaceAdapter leaves it: sB at weight_stride, anywhere. tile_out divides fold.out.
GemmShape TiledForwardGemm(const LoraFold& fold, int64_t rows, int64_t tile_out);
void TiledForward(const Exec& exec, const LtGemm& gemm, const FrozenLinear& linear,
                  const std::vector<AdapterPart>& parts, int64_t rows, int64_t tile_out, const void* x, void* y,
                  void* buffer, const GemmWorkspace& workspace);

}  // namespace longhaul::kernels::cuda
