// Rotate-half RoPE: element i of a head pairs with element i + head_dim / 2. A thread turns one vector of pairs in
// several heads of a row, so that it reads their cosines and sines once.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeadsPerThread = 4;

struct Shape {
  uint32_t threads;      // in all: rows * head_groups * vectors
  uint32_t head_groups;  // of kHeadsPerThread heads
  uint32_t vectors;      // of half a head
  int64_t first_row, positions;
  int heads, half;
  float sign;  // -1 for the inverse rotation
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(Shape s, Rows<T> x, Rows<float> cos, Rows<float> sin, const int32_t* positions) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= s.threads) return;
  const uint32_t vector = index % s.vectors;
  const uint32_t group = index / s.vectors % s.head_groups;
  const int64_t row = s.first_row + index / s.vectors / s.head_groups;
  const int32_t position = positions[row];
  // An index out of range is a bug of the engine: the kernel ends, and with it the trainer.
  if (position < 0 || position >= s.positions) __trap();
  const int col = static_cast<int>(vector) * kCount;
  const int first_head = static_cast<int>(group) * kHeadsPerThread;
  T* const start = x(row, int64_t{first_head} * 2 * s.half + col);

  Pack<T, kCount> first[kHeadsPerThread], second[kHeadsPerThread];
#pragma unroll
  for (int h = 0; h < kHeadsPerThread; ++h) {
    if (first_head + h >= s.heads) continue;
    first[h] = Load<kCount>(start + int64_t{h} * 2 * s.half);
    second[h] = Load<kCount>(start + int64_t{h} * 2 * s.half + s.half);
  }
  const Pack<float, kCount> c = Load<kCount>(cos(position, col));
  const Pack<float, kCount> t = Load<kCount>(sin(position, col));
#pragma unroll
  for (int h = 0; h < kHeadsPerThread; ++h) {
    if (first_head + h >= s.heads) continue;
    float turned_first[kCount], turned_second[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float a = first[h][i], b = second[h][i], turn = s.sign * t[i];
      turned_first[i] = a * c[i] - b * turn;
      turned_second[i] = b * c[i] + a * turn;
    }
    Store(start + int64_t{h} * 2 * s.half, PackOf<T>(turned_first));
    Store(start + int64_t{h} * 2 * s.half + s.half, PackOf<T>(turned_second));
  }
}

template <typename T, int kCount>
void LaunchRope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
                const int32_t* positions, bool inverse) {
  const int64_t vectors = cos.cols / kCount;
  const int64_t groups = CeilDiv(heads, kHeadsPerThread);
  // 32-bit arithmetic counts the threads of a launch.
  const int64_t rows_per_launch = (int64_t{1} << 30) / (vectors * groups);
  LH_CHECK(rows_per_launch > 0, std::to_string(x.cols));
  for (int64_t row = 0; row < x.rows; row += rows_per_launch) {
    const int64_t threads = std::min(rows_per_launch, x.rows - row) * groups * vectors;
    const Shape shape{
        static_cast<uint32_t>(threads), static_cast<uint32_t>(groups), static_cast<uint32_t>(vectors), row, cos.rows,
        static_cast<int>(heads),        static_cast<int>(cos.cols),    inverse ? -1.0f : 1.0f};
    Launch(exec, "Rope", RopeKernel<T, kCount>, CeilDiv(threads, kThreads), kThreads, 0, shape, Rows<T>(x),
           Rows<float>(cos), Rows<float>(sin), positions);
  }
}

}  // namespace

void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse) {
  WithActivation(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    // Both halves of a head start on a vector where the row does and half a head is whole vectors.
    if (Vectorizable(VectorOf<T>(), {x, cos, sin})) {
      LaunchRope<T, VectorOf<T>()>(exec, x, heads, cos, sin, positions, inverse);
    } else {
      LaunchRope<T, 1>(exec, x, heads, cos, sin, positions, inverse);
    }
  });
}

}  // namespace longhaul::kernels::cuda
