// GEMMs with a frozen weight in the library's own blocked layout (oneDNN matmul, format_tag::any).
#pragma once

#include <cstdint>

#include "kernels/exec.h"
#include "kernels/ops.h"

namespace longhaul::kernels::cpu {

// Whether the library wants weights in a layout of its own on this CPU (AVX-512: yes; AVX2: no).
bool LibraryPacksWeights();

// Bytes of one direction's copy in the layout that the library chooses, also where that layout is the plain one. At
// most
//   RoundUp(k, 64) * RoundUp(n, 64) * element bytes    (k summed over, n columns of the product),
// because the blocks are 16, 32, 48 or 64 columns wide and 16 (f32) or 32 (bf16) or, for AMX, 64 deep: that is the
// formula of the memory plan, and a layout that exceeds it is a CHECK.
int64_t LibraryPackedBytes(const Exec& exec, int64_t out, int64_t in, bool backward, bool bf16);

// y = beta * y + x op(W) by packed blocks. direction: false y = x W^T, true y = x W. x, y f32.
void PackedGemm(const Exec& exec, const Tensor& x, const FrozenWeight& w, bool backward, double beta, const Tensor& y,
                void* scratch);

}  // namespace longhaul::kernels::cpu
