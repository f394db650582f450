// o = softmax(scale * q k^T) v, tile by tile with a running maximum and sum (FlashAttention, Dao et al. 2022):
//   forward   per tile of queries, over tiles of keys: s = scale q k^T; m' = max(m, s); l = l e^(m - m') + sum e^(s -
//   m') backward  p = e^(s - lse); dp = dO v^T; ds = p (dp - delta), delta = rowsum(dO o)
//             dv = p^T dO, dk = scale ds^T q (per tile of keys, over heads of the group and queries), dq = scale ds k
// Every sum is taken by one thread in a fixed order, so results are the same bits from run to run.
#include <cuda_bf16.h>

#include <cstdint>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/sdpa_kernels.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kTile = 32;  // rows of queries, and of keys, a tile
constexpr int kLanes = 8;  // threads that share a row
constexpr int kThreads = kTile * kLanes;
constexpr int kScoresALane = kTile / kLanes;
constexpr float kLowest = -__FLT_MAX__;

using bf16 = __nv_bfloat16;

// A call as the kernels see it.
struct Call {
  SdpaShape shape;
  bool stats_are_rows;
  SdpaBuffers at;
  const int64_t* offsets[kSdpaOffsetArrays];  // kRagged
  const int32_t *lengths_q, *lengths_kv;      // null: full
};

// One sequence of a call.
struct Sequence {
  int64_t q_row, kv_row;  // of the layouts that are not ragged
  int q_length, kv_length;
  int shift;  // query i stands at key row i + shift
};

__device__ Sequence SequenceAt(const Call& call, int64_t b) {
  Sequence s;
  s.q_row = b * call.shape.max_q;
  s.kv_row = b * call.shape.max_kv;
  s.q_length = call.lengths_q != nullptr ? call.lengths_q[b] : static_cast<int>(call.shape.max_q);
  s.kv_length = call.lengths_kv != nullptr ? call.lengths_kv[b] : static_cast<int>(call.shape.max_kv);
  s.shift = call.shape.queries_last ? s.kv_length - s.q_length : 0;
  return s;
}

// First element of sequence b in a matrix whose rows are `stride` apart.
__device__ int64_t Base(const Call& call, SdpaIndex array, int64_t b, int64_t row, int64_t stride) {
  const int64_t* const offsets = call.offsets[static_cast<int>(array)];
  return offsets != nullptr ? offsets[b] : row * stride;
}

__device__ int64_t StatsAt(const Call& call, int64_t b, int head, int row) {
  if (call.stats_are_rows) {
    return call.offsets[static_cast<int>(SdpaIndex::kStats)][b] + row * call.shape.heads + head;
  }
  return (b * call.shape.heads + head) * call.shape.max_q + row;
}

// rows [first, first + kTile) of a head of a sequence into shared memory, zeros beyond `length`.
template <int kDim>
__device__ void LoadTile(const void* matrix, int64_t base, int64_t stride, int head, int head_dim, int first,
                         int length, bf16 (*tile)[kDim]) {
  const bf16* const from = static_cast<const bf16*>(matrix) + base + static_cast<int64_t>(head) * head_dim;
  for (int i = threadIdx.x; i < kTile * kDim; i += kThreads) {
    const int row = i / kDim, col = i % kDim;
    const bool inside = first + row < length && col < head_dim;
    tile[row][col] = inside ? from[(first + row) * stride + col] : __float2bfloat16(0.0f);
  }
}

template <int kDim>
__device__ float Dot(const bf16* a, const bf16* b) {
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < kDim; ++i) sum += __bfloat162float(a[i]) * __bfloat162float(b[i]);
  return sum;
}

__device__ bool Visible(const Call& call, const Sequence& s, int query, int key) {
  const int at = query + s.shift;
  return query < s.q_length && key < s.kv_length && key <= at &&
         (call.shape.window == 0 || key > at - call.shape.window);
}

// Keys that any query of [first, first + kTile) sees begin here, at a tile.
__device__ int FirstKey(const Call& call, const Sequence& s, int first_query) {
  if (call.shape.window == 0) return 0;
  const int64_t key = first_query + s.shift - call.shape.window + 1;
  return key > 0 ? static_cast<int>(key) / kTile * kTile : 0;
}

// The eight lanes of a row are neighbours in a warp.
__device__ float RowSum(float value) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
  return value;
}
__device__ float RowMax(float value) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, lane));
  return value;
}

// A lane's columns of a row of accumulators: lane, lane + 8, ...
template <int kDim>
__device__ void Store(void* matrix, int64_t base, int64_t stride, int head, int head_dim, int row, int lane,
                      float factor, const float (&values)[kDim / kLanes]) {
  bf16* const to = static_cast<bf16*>(matrix) + base + row * stride + static_cast<int64_t>(head) * head_dim;
#pragma unroll
  for (int i = 0; i < kDim / kLanes; ++i) {
    if (lane + i * kLanes < head_dim) to[lane + i * kLanes] = __float2bfloat16(values[i] * factor);
  }
}

template <int kDim>
struct ForwardTiles {
  bf16 q[kTile][kDim], k[kTile][kDim], v[kTile][kDim];
  float p[kTile][kTile + 1];
};

// A block a tile of queries, a head and a sequence: x = sequence * tiles + tile, y = head.
template <int kDim>
__global__ void __launch_bounds__(kThreads) ForwardKernel(Call call, int tiles) {
  extern __shared__ char shared[];
  auto& tile = *reinterpret_cast<ForwardTiles<kDim>*>(shared);
  const SdpaShape& shape = call.shape;
  const int64_t b = blockIdx.x / tiles;
  const int first = static_cast<int>(blockIdx.x % tiles) * kTile, head = blockIdx.y;
  const int kv_head = head / static_cast<int>(shape.heads / shape.kv_heads), dim = static_cast<int>(shape.head_dim);
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const Sequence s = SequenceAt(call, b);
  if (first >= s.q_length) return;
  LoadTile<kDim>(call.at.q, Base(call, SdpaIndex::kQ, b, s.q_row, shape.q_stride), shape.q_stride, head, dim, first,
                 s.q_length, tile.q);
  float largest = kLowest, sum = 0, o[kDim / kLanes] = {};
  const int last = min(s.kv_length, first + kTile + s.shift);
  for (int key = FirstKey(call, s, first); key < last; key += kTile) {
    __syncthreads();
    LoadTile<kDim>(call.at.k, Base(call, SdpaIndex::kK, b, s.kv_row, shape.k_stride), shape.k_stride, kv_head, dim, key,
                   s.kv_length, tile.k);
    LoadTile<kDim>(call.at.v, Base(call, SdpaIndex::kV, b, s.kv_row, shape.v_stride), shape.v_stride, kv_head, dim, key,
                   s.kv_length, tile.v);
    __syncthreads();
    float scores[kScoresALane], tile_largest = kLowest;
#pragma unroll
    for (int i = 0; i < kScoresALane; ++i) {
      const int column = lane + i * kLanes;
      const bool visible = Visible(call, s, first + row, key + column);
      scores[i] = visible ? Dot<kDim>(tile.q[row], tile.k[column]) * static_cast<float>(shape.scale) : kLowest;
      tile_largest = fmaxf(tile_largest, scores[i]);
    }
    const float now_largest = fmaxf(largest, RowMax(tile_largest)), fade = __expf(largest - now_largest);
    float tile_sum = 0;
#pragma unroll
    for (int i = 0; i < kScoresALane; ++i) {
      const float p = scores[i] == kLowest ? 0.0f : __expf(scores[i] - now_largest);
      tile.p[row][lane + i * kLanes] = p;
      tile_sum += p;
    }
    sum = sum * fade + RowSum(tile_sum);
    largest = now_largest;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kDim / kLanes; ++i) {
      float value = o[i] * fade;
      for (int j = 0; j < kTile; ++j) value += tile.p[row][j] * __bfloat162float(tile.v[j][lane + i * kLanes]);
      o[i] = value;
    }
  }
  if (first + row >= s.q_length) return;
  Store<kDim>(call.at.o, Base(call, SdpaIndex::kO, b, s.q_row, shape.o_stride), shape.o_stride, head, dim, first + row,
              lane, sum > 0 ? 1 / sum : 0.0f, o);
  if (lane == 0) call.at.stats[StatsAt(call, b, head, first + row)] = largest + logf(sum);
}

// delta, laid out like the statistics: a warp a row of a head, `blocks` a sequence.
__global__ void DeltaKernel(Call call, float* delta, int blocks) {
  const SdpaShape& shape = call.shape;
  const int64_t b = blockIdx.x / blocks;
  const Sequence s = SequenceAt(call, b);
  const int64_t item = (static_cast<int64_t>(blockIdx.x % blocks) * kThreads + threadIdx.x) / 32;
  const int row = static_cast<int>(item / shape.heads), head = static_cast<int>(item % shape.heads);
  if (row >= s.q_length) return;
  const auto at = [&](const void* matrix, SdpaIndex array, int64_t stride) {
    return static_cast<const bf16*>(matrix) + Base(call, array, b, s.q_row, stride) + row * stride +
           head * shape.head_dim;
  };
  const bf16* const o = at(call.at.o, SdpaIndex::kO, shape.o_stride);
  const bf16* const d_o = at(call.at.d_o, SdpaIndex::kDO, shape.d_o_stride);
  float sum = 0;
  for (int i = threadIdx.x % 32; i < shape.head_dim; i += 32) sum += __bfloat162float(o[i]) * __bfloat162float(d_o[i]);
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
  if (threadIdx.x % 32 == 0) delta[StatsAt(call, b, head, row)] = sum;
}

template <int kDim>
struct BackwardTiles {
  bf16 q[kTile][kDim], d_o[kTile][kDim], k[kTile][kDim], v[kTile][kDim];
  float p[kTile][kTile + 1], ds[kTile][kTile + 1];
};

// p and ds of this thread's row of queries against the tile's keys.
template <int kDim>
__device__ void ScoreTile(const Call& call, const Sequence& s, int query, int key, int row, int lane, float lse,
                          float delta, BackwardTiles<kDim>& tile) {
#pragma unroll
  for (int i = 0; i < kScoresALane; ++i) {
    const int column = lane + i * kLanes;
    float p = 0, ds = 0;
    if (Visible(call, s, query + row, key + column)) {
      p = __expf(Dot<kDim>(tile.q[row], tile.k[column]) * static_cast<float>(call.shape.scale) - lse);
      ds = p * (Dot<kDim>(tile.d_o[row], tile.v[column]) - delta);
    }
    tile.p[row][column] = p;
    tile.ds[row][column] = ds;
  }
}

template <int kDim>
__device__ void LoadQueries(const Call& call, const Sequence& s, int64_t b, int head, int first,
                            BackwardTiles<kDim>& tile) {
  const SdpaShape& shape = call.shape;
  const int dim = static_cast<int>(shape.head_dim);
  LoadTile<kDim>(call.at.q, Base(call, SdpaIndex::kQ, b, s.q_row, shape.q_stride), shape.q_stride, head, dim, first,
                 s.q_length, tile.q);
  LoadTile<kDim>(call.at.d_o, Base(call, SdpaIndex::kDO, b, s.q_row, shape.d_o_stride), shape.d_o_stride, head, dim,
                 first, s.q_length, tile.d_o);
}

template <int kDim>
__device__ void LoadKeys(const Call& call, const Sequence& s, int64_t b, int kv_head, int first,
                         BackwardTiles<kDim>& tile) {
  const SdpaShape& shape = call.shape;
  const int dim = static_cast<int>(shape.head_dim);
  LoadTile<kDim>(call.at.k, Base(call, SdpaIndex::kK, b, s.kv_row, shape.k_stride), shape.k_stride, kv_head, dim, first,
                 s.kv_length, tile.k);
  LoadTile<kDim>(call.at.v, Base(call, SdpaIndex::kV, b, s.kv_row, shape.v_stride), shape.v_stride, kv_head, dim, first,
                 s.kv_length, tile.v);
}

// A block a tile of keys, a key head and a sequence; every query head of the group in order.
template <int kDim>
__global__ void __launch_bounds__(kThreads) KeysKernel(Call call, const float* delta, int tiles) {
  extern __shared__ char shared[];
  auto& tile = *reinterpret_cast<BackwardTiles<kDim>*>(shared);
  const SdpaShape& shape = call.shape;
  const int64_t b = blockIdx.x / tiles;
  const int first = static_cast<int>(blockIdx.x % tiles) * kTile, kv_head = blockIdx.y;
  const int group = static_cast<int>(shape.heads / shape.kv_heads), dim = static_cast<int>(shape.head_dim);
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const Sequence s = SequenceAt(call, b);
  if (first >= s.kv_length) return;
  LoadKeys(call, s, b, kv_head, first, tile);
  float dk[kDim / kLanes] = {}, dv[kDim / kLanes] = {};
  const int begin = max(first - s.shift, 0) / kTile * kTile;
  const int64_t end_of_window = shape.window == 0 ? s.q_length : first + kTile + shape.window - s.shift;
  const int end = static_cast<int>(min(static_cast<int64_t>(s.q_length), end_of_window));
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int query = begin; query < end; query += kTile) {
      __syncthreads();
      LoadQueries(call, s, b, head, query, tile);
      __syncthreads();
      const bool inside = query + row < s.q_length;
      const int64_t at = inside ? StatsAt(call, b, head, query + row) : 0;
      ScoreTile(call, s, query, first, row, lane, inside ? call.at.stats[at] : 0.0f, inside ? delta[at] : 0.0f, tile);
      __syncthreads();
      // From here this thread's row is one of keys.
#pragma unroll
      for (int i = 0; i < kDim / kLanes; ++i) {
        for (int j = 0; j < kTile; ++j) {
          dv[i] += tile.p[j][row] * __bfloat162float(tile.d_o[j][lane + i * kLanes]);
          dk[i] += tile.ds[j][row] * __bfloat162float(tile.q[j][lane + i * kLanes]);
        }
      }
    }
  }
  if (first + row >= s.kv_length) return;
  Store<kDim>(call.at.dk, Base(call, SdpaIndex::kDK, b, s.kv_row, shape.dk_stride), shape.dk_stride, kv_head, dim,
              first + row, lane, static_cast<float>(shape.scale), dk);
  Store<kDim>(call.at.dv, Base(call, SdpaIndex::kDV, b, s.kv_row, shape.dv_stride), shape.dv_stride, kv_head, dim,
              first + row, lane, 1.0f, dv);
}

// A block a tile of queries, a head and a sequence. Reads q and dO of its own rows only, so that dq may alias q.
template <int kDim>
__global__ void __launch_bounds__(kThreads) QueriesKernel(Call call, const float* delta, int tiles) {
  extern __shared__ char shared[];
  auto& tile = *reinterpret_cast<BackwardTiles<kDim>*>(shared);
  const SdpaShape& shape = call.shape;
  const int64_t b = blockIdx.x / tiles;
  const int first = static_cast<int>(blockIdx.x % tiles) * kTile, head = blockIdx.y;
  const int kv_head = head / static_cast<int>(shape.heads / shape.kv_heads), dim = static_cast<int>(shape.head_dim);
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const Sequence s = SequenceAt(call, b);
  if (first >= s.q_length) return;
  LoadQueries(call, s, b, head, first, tile);
  const bool inside = first + row < s.q_length;
  const int64_t at = inside ? StatsAt(call, b, head, first + row) : 0;
  const float lse = inside ? call.at.stats[at] : 0.0f, own_delta = inside ? delta[at] : 0.0f;
  float dq[kDim / kLanes] = {};
  const int last = min(s.kv_length, first + kTile + s.shift);
  for (int key = FirstKey(call, s, first); key < last; key += kTile) {
    __syncthreads();
    LoadKeys(call, s, b, kv_head, key, tile);
    __syncthreads();
    ScoreTile(call, s, first, key, row, lane, lse, own_delta, tile);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kDim / kLanes; ++i) {
      for (int j = 0; j < kTile; ++j) dq[i] += tile.ds[row][j] * __bfloat162float(tile.k[j][lane + i * kLanes]);
    }
  }
  if (!inside) return;
  Store<kDim>(call.at.dq, Base(call, SdpaIndex::kDQ, b, s.q_row, shape.dq_stride), shape.dq_stride, head, dim,
              first + row, lane, static_cast<float>(shape.scale), dq);
}

struct OffsetArrays {
  int64_t* offsets[kSdpaOffsetArrays];
  int64_t strides[kSdpaOffsetArrays];
  bool of_keys[kSdpaOffsetArrays];
  int32_t *lengths_q, *lengths_kv;
};

__global__ void IndexKernel(OffsetArrays arrays, const int64_t* rows_q, const int64_t* rows_kv, int64_t batch) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b > batch) return;
  for (int i = 0; i < kSdpaOffsetArrays; ++i) {
    arrays.offsets[i][b] = (arrays.of_keys[i] ? rows_kv[b] : rows_q[b]) * arrays.strides[i];
  }
  if (b == batch) return;
  arrays.lengths_q[b] = static_cast<int32_t>(rows_q[b + 1] - rows_q[b]);
  arrays.lengths_kv[b] = static_cast<int32_t>(rows_kv[b + 1] - rows_kv[b]);
}

// ---- Launchers ----

void Check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw CudaError("Sdpa", call, error, cudaGetErrorString(error));
}

unsigned Blocks(int64_t count) {
  LH_CHECK(count > 0 && count <= INT32_MAX);
  return static_cast<unsigned>(count);
}

Call MakeCall(const SdpaShape& shape, bool stats_are_rows, const SdpaBuffers& buffers) {
  Call call{.shape = shape,
            .stats_are_rows = stats_are_rows,
            .at = buffers,
            .offsets = {},
            .lengths_q = nullptr,
            .lengths_kv = nullptr};
  if (shape.layout == SdpaLayout::kDense) return call;
  call.lengths_q = buffers.lengths_q;
  call.lengths_kv = buffers.lengths_kv;
  if (shape.layout == SdpaLayout::kRagged) {
    const auto at = [&](SdpaIndex array) {
      return static_cast<const char*>(buffers.index) + SdpaIndexOffset(shape, array);
    };
    for (int i = 0; i < kSdpaOffsetArrays; ++i) {
      call.offsets[i] = reinterpret_cast<const int64_t*>(at(static_cast<SdpaIndex>(i)));
    }
    call.lengths_q = reinterpret_cast<const int32_t*>(at(SdpaIndex::kLengthsQ));
    call.lengths_kv = reinterpret_cast<const int32_t*>(at(SdpaIndex::kLengthsKv));
  }
  LH_CHECK(call.lengths_q != nullptr && call.lengths_kv != nullptr);
  return call;
}

template <typename Kernel, typename... Arguments>
void Launch(cudaStream_t stream, Kernel kernel, dim3 blocks, size_t shared_bytes, const Arguments&... arguments) {
  // More than 48 KiB of shared memory has to be asked for.
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "cudaFuncSetAttribute");
  kernel<<<blocks, kThreads, shared_bytes, stream>>>(arguments...);
  Check(cudaGetLastError(), "launch");
}

// Calls f with the least compiled head width that holds `head_dim`.
template <typename F>
void WithHeadDim(int64_t head_dim, F f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64>());
  if (head_dim <= 128) return f(std::integral_constant<int, 128>());
  static_assert(limits::kMaxHeadDim == 256);
  return f(std::integral_constant<int, 256>());
}

int64_t Tiles(int64_t rows) { return (rows + kTile - 1) / kTile; }

}  // namespace

void LaunchSdpaIndex(cudaStream_t stream, const SdpaShape& shape, const int64_t* rows_q, const int64_t* rows_kv,
                     void* index) {
  const int64_t strides[kSdpaOffsetArrays] = {shape.q_stride,  shape.k_stride,   shape.v_stride,
                                              shape.o_stride,  shape.d_o_stride, shape.dq_stride,
                                              shape.dk_stride, shape.dv_stride,  shape.heads};
  OffsetArrays arrays{};
  const auto at = [&](SdpaIndex array) { return static_cast<char*>(index) + SdpaIndexOffset(shape, array); };
  for (int i = 0; i < kSdpaOffsetArrays; ++i) {
    const auto array = static_cast<SdpaIndex>(i);
    arrays.offsets[i] = reinterpret_cast<int64_t*>(at(array));
    arrays.strides[i] = strides[i];
    arrays.of_keys[i] =
        array == SdpaIndex::kK || array == SdpaIndex::kV || array == SdpaIndex::kDK || array == SdpaIndex::kDV;
  }
  arrays.lengths_q = reinterpret_cast<int32_t*>(at(SdpaIndex::kLengthsQ));
  arrays.lengths_kv = reinterpret_cast<int32_t*>(at(SdpaIndex::kLengthsKv));
  Launch(stream, IndexKernel, dim3(Blocks((shape.batch + kThreads) / kThreads)), 0, arrays, rows_q, rows_kv,
         shape.batch);
}

void LaunchSdpaForward(cudaStream_t stream, const SdpaShape& shape, bool stats_are_rows, const SdpaBuffers& buffers) {
  const Call call = MakeCall(shape, stats_are_rows, buffers);
  const int tiles = static_cast<int>(Tiles(shape.max_q));
  WithHeadDim(shape.head_dim, [&](auto dim) {
    Launch(stream, ForwardKernel<dim>, dim3(Blocks(tiles * shape.batch), Blocks(shape.heads)),
           sizeof(ForwardTiles<dim>), call, tiles);
  });
}

void LaunchSdpaBackward(cudaStream_t stream, const SdpaShape& shape, bool stats_are_rows, const SdpaBuffers& buffers,
                        float* delta) {
  const Call call = MakeCall(shape, stats_are_rows, buffers);
  const int q_tiles = static_cast<int>(Tiles(shape.max_q)), kv_tiles = static_cast<int>(Tiles(shape.max_kv));
  const int delta_blocks = static_cast<int>((shape.max_q * shape.heads * 32 + kThreads - 1) / kThreads);
  Launch(stream, DeltaKernel, dim3(Blocks(delta_blocks * shape.batch)), 0, call, delta, delta_blocks);
  WithHeadDim(shape.head_dim, [&](auto dim) {
    Launch(stream, KeysKernel<dim>, dim3(Blocks(kv_tiles * shape.batch), Blocks(shape.kv_heads)),
           sizeof(BackwardTiles<dim>), call, delta, kv_tiles);
    Launch(stream, QueriesKernel<dim>, dim3(Blocks(q_tiles * shape.batch), Blocks(shape.heads)),
           sizeof(BackwardTiles<dim>), call, delta, q_tiles);
  });
}

}  // namespace longhaul::kernels::cuda
