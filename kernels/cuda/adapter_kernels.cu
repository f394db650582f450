// sb[i, r] = s b[i, r] inside the block of row i's linear, else 0;  a[r, j] = a[r, j], 0 for padded ranks.
#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/adapter_kernels.h"
#include "kernels/cuda/launch_on.cuh"
#include "kernels/cuda/pack.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 128;

struct Parts {
  AdapterPart part[limits::kMaxStackedLinears];
  int64_t first_row[limits::kMaxStackedLinears];   // of its B in the stack
  int64_t first_rank[limits::kMaxStackedLinears];  // padded, of its A
  int count;
};

// A block a row: first those of sb, then those of a.
__global__ void __launch_bounds__(kThreads)
    PlaceKernel(Parts parts, LoraFold fold, int64_t first_row, int64_t rows, Bf16* sb, Bf16* a) {
  const int64_t block = blockIdx.x;
  const bool is_b = block < rows;
  const int64_t row = is_b ? first_row + block : block - rows;
  const int64_t* const firsts = is_b ? parts.first_row : parts.first_rank;
  int which = 0;
  while (which + 1 < parts.count && row >= firsts[which + 1]) ++which;
  const AdapterPart& part = parts.part[which];
  if (is_b) {
    for (int64_t r = threadIdx.x; r < fold.rank; r += kThreads) {
      const int64_t own = r - parts.first_rank[which];
      const bool inside = own >= 0 && own < part.rank;
      const float value = inside ? part.scale * part.b[(row - firsts[which]) * part.rank + own] : 0.0f;
      sb[block * fold.weight_stride + r] = __float2bfloat16_rn(value);
    }
    return;
  }
  const int64_t own = row - firsts[which];
  for (int64_t j = threadIdx.x; j < fold.in; j += kThreads) {
    const float value = own < part.rank ? part.a[own * fold.in + j] : 0.0f;
    a[row * fold.weight_stride + j] = __float2bfloat16_rn(value);
  }
}

}  // namespace

void LaunchPlaceAdapter(cudaStream_t stream, const LoraFold& fold, const std::vector<AdapterPart>& parts,
                        int64_t first_row, int64_t rows, void* sb, void* a) {
  LH_CHECK(!parts.empty() && parts.size() <= limits::kMaxStackedLinears);
  Parts at{};
  int64_t out = 0, rank = 0;
  for (const AdapterPart& part : parts) {
    LH_CHECK(part.rank == 0 || (part.a != nullptr && part.b != nullptr));
    at.part[at.count] = part;
    at.first_row[at.count] = out;
    at.first_rank[at.count] = rank;
    ++at.count;
    out += part.out;
    rank += (part.rank + kLoraRankUnit - 1) / kLoraRankUnit * kLoraRankUnit;
  }
  LH_CHECK(out == fold.out && rank == fold.rank && first_row + rows <= fold.out);
  const int64_t blocks = rows + (a != nullptr ? fold.rank : 0);
  LaunchOn(stream, "PlaceAdapter", PlaceKernel, blocks, kThreads, 0, at, fold, first_row, rows, static_cast<Bf16*>(sb),
           static_cast<Bf16*>(a));
}

}  // namespace longhaul::kernels::cuda
