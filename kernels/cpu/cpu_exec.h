// What the CPU backend keeps between ops: the library's engine, one stream and one staging buffer a thread, the packed
// GEMM primitives, small buffers for per-row and per-chunk sums. Buffers grow on the first use of a shape and never
// after. Not thread-safe: ops of one Exec are called from one thread, which owns the worker threads.
#pragma once

#include <omp.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "dnnl.hpp"
#include "kernels/exec.h"
#include "kernels/ops.h"

namespace longhaul::kernels {

// 64-byte aligned memory that only grows. Pages that are never touched cost nothing.
class GrowingBuffer {
 public:
  GrowingBuffer() = default;
  ~GrowingBuffer();
  GrowingBuffer(GrowingBuffer&& other) noexcept;
  GrowingBuffer& operator=(GrowingBuffer&&) = delete;
  // At least `bytes` bytes; the old content is gone where it grew. Throws std::bad_alloc and is empty then.
  void* Reserve(int64_t bytes);
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A matmul of `rows` x k times packed k x n into f32, on one thread.
struct PackedKey {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  bool bf16 = false;
  bool accumulate = false;  // adds to the output
  auto operator<=>(const PackedKey&) const = default;
};
// A matmul of `rows` x k times a plain k x n (or its transpose), in bf16 into f32, between columns of wider rows.
struct FactorKey {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  int64_t source_stride = 0;
  int64_t destination_stride = 0;
  bool transposed = false;
  bool accumulate = false;
  auto operator<=>(const FactorKey&) const = default;
};
struct PackedPrimitive {
  dnnl::memory::desc weights;
  dnnl::matmul matmul;
  struct Arguments {
    dnnl::memory source, weights, destination, scratchpad;
  };
  std::vector<Arguments> threads;
};

struct CpuExec {
  explicit CpuExec(int threads);

  struct Thread {
    dnnl::stream stream;
    GrowingBuffer staging;     // padded tail rows of a GEMM
    GrowingBuffer scratchpad;  // what the library's primitive asks for
  };

  CpuFacts facts;
  dnnl::engine engine;
  std::vector<Thread> threads;
  std::map<PackedKey, std::unique_ptr<PackedPrimitive>> packed;
  std::map<FactorKey, std::unique_ptr<PackedPrimitive>> factors;
  GrowingBuffer sums;       // doubles: per row (loss), per chunk (sum of squares)
  GrowingBuffer doc_order;  // int64: documents, longest first
};

namespace cpu {

// Below this many elements a parallel region costs more than it gives.
inline constexpr int64_t kMinParallelElements = 16384;

// body(begin, end) over all rows, split among the threads. A body must treat every row alike, so that the split
// changes nothing.
template <typename Body>
void ParallelRows(const Exec& exec, int64_t rows, int64_t elements_per_row, const Body& body) {
  if (rows <= 0) return;
  if (exec.threads() == 1 || rows == 1 || rows * elements_per_row < kMinParallelElements || omp_in_parallel()) {
    body(int64_t{0}, rows);
    return;
  }
#pragma omp parallel num_threads(exec.threads())
  {
    const int64_t thread = omp_get_thread_num();
    const int64_t count = omp_get_num_threads();
    const int64_t begin = rows * thread / count;
    const int64_t end = rows * (thread + 1) / count;
    if (begin < end) body(begin, end);
  }
}

// body(task, thread) for every task, handed out one by one in order. Inside, the GEMM library runs on one thread, also
// where the region has only one (then it would not notice that it is in a region).
// Called from inside a region: on the calling thread, which passes its own number.
template <typename Body>
void ParallelTasks(const Exec& exec, int64_t tasks, const Body& body) {
  if (tasks <= 0) return;
  if (omp_in_parallel()) {
    for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
    return;
  }
#pragma omp parallel num_threads(exec.threads())
  {
    omp_set_num_threads(1);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
  }
}

}  // namespace cpu

}  // namespace longhaul::kernels
