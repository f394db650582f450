// GEMMs with a frozen weight laid out for them once. Two layouts, one copy a direction each, chosen by the CPU:
// - the library's own blocks (oneDNN matmul, format_tag::any): AVX-512, and bf16 always;
// - f32 elsewhere, where the library has none: column panels, each a plain k x 192 matrix. The same sgemm runs 5 to
// 100%
//   faster over them, because rows of the weight lie next to each other instead of a power of two apart (README.md).
#pragma once

#include <cstdint>

#include "kernels/exec.h"
#include "kernels/ops.h"

namespace longhaul::kernels::cpu {

// Whether a weight of this type goes into the library's blocks, else into panels.
bool UsesLibraryBlocks(bool bf16);

// Bytes of one direction's copy in the layout in use.
int64_t PackedBytes(const Exec& exec, int64_t out, int64_t in, bool backward, bool bf16);
// y = beta * y + x op(W) in w's packed layout: op(W) is W^T forward, W backward. x, y f32.
void PackedGemm(const Exec& exec, const Tensor& x, const FrozenWeight& w, bool backward, double beta, const Tensor& y,
                void* scratch);

// The two layouts, each on every CPU (the tests run both everywhere). In all of them the operand is k x n, summed over
// k: W [out, in] contiguous f32 going backward, its transpose going forward.

// Columns of a panel: 192 x 576 floats stay in a 512 KiB L2. The last panel of a weight is as narrow as what is left.
// A weight takes k * n * 4 bytes.
inline constexpr int64_t kPanelCols = 192;
void PackPanels(const Exec& exec, const Tensor& rows, bool backward, float* panels);
// y = beta * y + x times the panels. x [rows, k], y [rows, n], any strides.
void PanelGemm(const Exec& exec, const Tensor& x, const float* panels, double beta, const Tensor& y);

// At most RoundUp(k, 64) * RoundUp(n, 64) * element bytes, because the library's blocks are 16, 32, 48 or 64 columns
// wide and at most 64 deep: that is the formula of the memory plan, and a layout that exceeds it is a CHECK.
int64_t LibraryBytes(const Exec& exec, int64_t k, int64_t n, bool bf16);
void PackLibrary(const Exec& exec, const Tensor& rows, bool backward, bool bf16, void* blocks);
// y = x rounded to bf16, nearest even.
void RoundRow(const float* x, uint16_t* y, int64_t n);

// A small matrix beside the weight: k x n, or n x k to be transposed; dense bf16.
struct SmallFactor {
  const uint16_t* values = nullptr;
  bool transposed = false;
  int64_t k = 0, n = 0;
  int64_t from = 0;  // first column of what it multiplies
  int64_t to = 0;    // first column of the result
};
// What a LoRA adds to a product: t = t_scale * x [in factors], and y += y_scale * t [out factors]. Done in the block of
// rows at hand, so that x is rounded once and y is still in the cache.
struct LowRankFold {
  Tensor t;  // [rows, columns] f32, written
  double t_scale = 1, y_scale = 1;
  int64_t in_count = 0, out_count = 0;
  SmallFactor in[kMaxLoraParts], out[kMaxLoraParts];
};
// bf16: x is rounded into scratch (FrozenGemmScratchBytes). `fold`: null or, with bf16 alone, as above; y's data may be
// null then, where only t is wanted.
void LibraryGemm(const Exec& exec, const Tensor& x, void* blocks, bool bf16, double beta, const Tensor& y,
                 void* scratch, const LowRankFold* fold = nullptr);

}  // namespace longhaul::kernels::cpu
