// Causal grouped-query attention by query blocks of 128 rows against the prefix of keys that they see:
//   S = scale * Q K^T, P = softmax(S), O = P V
//   dP = dO V^T, dS = scale * P * (dP - delta), dV = P^T dO, dK = dS^T Q, dQ = dS K,  delta = rowsum(dO * O)
// The products are the GEMM library's, on strided views of one document and one head; nothing of size n x n beyond the
// one block exists. Forward: one task a (head, query block). Backward: one task a (document, key head), which sums over
// the group's query heads and blocks in a fixed order, so the bits do not depend on the number of threads.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int64_t kQueryBlock = 128;

// Elements from one row of scores to the next: padded to a cache line.
int64_t ScoreStride(int64_t longest_doc) { return (longest_doc + 15) / 16 * 16; }

int64_t ScoreElements(int64_t longest_doc) {
  return std::min(kQueryBlock, std::max<int64_t>(longest_doc, 1)) * std::max<int64_t>(ScoreStride(longest_doc), 16);
}

// s becomes P, dp becomes dS; both are zeroed past `valid`.
template <typename T>
LONGHAUL_SIMD void ScoreGradientRow(T* s, T* dp, int64_t valid, int64_t total, T lse, T delta, T scale) {
#pragma omp simd
  for (int64_t j = 0; j < valid; ++j) {
    const T p = Exp(s[j] - lse);
    s[j] = p;
    dp[j] = scale * p * (dp[j] - delta);
  }
  for (int64_t j = valid; j < total; ++j) s[j] = dp[j] = 0;
}

template <typename T>
LONGHAUL_SIMD T Dot(const T* a, const T* b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<T>(sum);
}

// One head's columns, from a row on.
template <typename T>
T* At(const Tensor& x, int64_t row, int64_t head, int64_t head_dim) {
  return x.as<T>() + row * x.stride + head * head_dim;
}

// A block of queries: rows [begin, begin + rows) of a document that starts at doc_begin; they see `prefix` keys.
struct QueryBlock {
  int64_t doc_begin, begin, rows, prefix;
};

QueryBlock BlockOfDoc(int64_t doc_begin, int64_t length, int64_t index) {
  const int64_t first = index * kQueryBlock;
  const int64_t rows = std::min(kQueryBlock, length - first);
  return {doc_begin, doc_begin + first, rows, first + rows};
}

int64_t BlocksOf(int64_t length) { return (length + kQueryBlock - 1) / kQueryBlock; }

int64_t DocLength(const AttentionShape& shape, int64_t doc) {
  return shape.doc_offsets[doc + 1] - shape.doc_offsets[doc];
}

// The block with this number, counted over all documents, last first: the long prefixes start early.
QueryBlock FindBlock(const AttentionShape& shape, int64_t number) {
  for (int64_t doc = shape.docs - 1; doc >= 0; --doc) {
    const int64_t blocks = BlocksOf(DocLength(shape, doc));
    if (number < blocks) return BlockOfDoc(shape.doc_offsets[doc], DocLength(shape, doc), blocks - 1 - number);
    number -= blocks;
  }
  LH_CHECK(false, "no such block");
  return {};
}

template <typename T>
void ForwardBlock(const AttentionShape& shape, const QueryBlock& block, int64_t head, const Tensor& q, const Tensor& k,
                  const Tensor& v, const Tensor& o, const Tensor& lse, T* scores) {
  const int64_t dim = shape.head_dim;
  const int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t stride = ScoreStride(shape.longest_doc);
  SerialGemm(false, true, block.rows, block.prefix, dim, static_cast<T>(shape.scale), At<T>(q, block.begin, head, dim),
             q.stride, At<T>(k, block.doc_begin, kv_head, dim), k.stride, T{0}, scores, stride);
  T inverse_sums[kQueryBlock];
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t valid = block.begin - block.doc_begin + i + 1;
    T* const row = scores + i * stride;
    const T largest = RowMax(row, valid);
    const double sum = ExpSumInPlace(row, valid, largest);
    std::fill(row + valid, row + block.prefix, T{0});
    inverse_sums[i] = static_cast<T>(1.0 / sum);
    Row<T>(lse, block.begin + i)[head] = static_cast<T>(static_cast<double>(largest) + std::log(sum));
  }
  T* const out = At<T>(o, block.begin, head, dim);
  SerialGemm(false, false, block.rows, dim, block.prefix, T{1}, scores, stride, At<T>(v, block.doc_begin, kv_head, dim),
             v.stride, T{0}, out, o.stride);
  for (int64_t i = 0; i < block.rows; ++i) ScaleRow(out + i * o.stride, dim, inverse_sums[i]);
}

struct BackwardTensors {
  const Tensor &d_o, &q, &k, &v, &o, &lse, &dq, &dk, &dv;
};

// first: overwrites dk and dv of the whole prefix, else adds to them.
template <typename T>
void BackwardBlock(const AttentionShape& shape, const QueryBlock& block, int64_t head, bool first,
                   const BackwardTensors& t, T* scores, T* gradients) {
  const int64_t dim = shape.head_dim;
  const int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t stride = ScoreStride(shape.longest_doc);
  const T scale = static_cast<T>(shape.scale);
  const T beta = first ? T{0} : T{1};
  const T* const q = At<T>(t.q, block.begin, head, dim);
  const T* const d_o = At<T>(t.d_o, block.begin, head, dim);
  const T* const k = At<T>(t.k, block.doc_begin, kv_head, dim);
  SerialGemm(false, true, block.rows, block.prefix, dim, scale, q, t.q.stride, k, t.k.stride, T{0}, scores, stride);
  SerialGemm(false, true, block.rows, block.prefix, dim, T{1}, d_o, t.d_o.stride,
             At<T>(t.v, block.doc_begin, kv_head, dim), t.v.stride, T{0}, gradients, stride);
  for (int64_t i = 0; i < block.rows; ++i) {
    const T delta = Dot(d_o + i * t.d_o.stride, At<T>(t.o, block.begin + i, head, dim), dim);
    ScoreGradientRow(scores + i * stride, gradients + i * stride, block.begin - block.doc_begin + i + 1, block.prefix,
                     Row<T>(t.lse, block.begin + i)[head], delta, scale);
  }
  SerialGemm(true, false, block.prefix, dim, block.rows, T{1}, scores, stride, d_o, t.d_o.stride, beta,
             At<T>(t.dv, block.doc_begin, kv_head, dim), t.dv.stride);
  SerialGemm(true, false, block.prefix, dim, block.rows, T{1}, gradients, stride, q, t.q.stride, beta,
             At<T>(t.dk, block.doc_begin, kv_head, dim), t.dk.stride);
  // Last, because dq may lie on q.
  SerialGemm(false, false, block.rows, dim, block.prefix, T{1}, gradients, stride, k, t.k.stride, T{0},
             At<T>(t.dq, block.begin, head, dim), t.dq.stride);
}

}  // namespace

void AttentionForward(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& o, const Tensor& lse, void* scratch) {
  int64_t blocks = 0;
  for (int64_t doc = 0; doc < shape.docs; ++doc) blocks += BlocksOf(DocLength(shape, doc));
  WithFloatType(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelTasks(exec, blocks * shape.heads, [&](int64_t task, int thread) {
      T* const scores = static_cast<T*>(scratch) + thread * ScoreElements(shape.longest_doc);
      ForwardBlock<T>(shape, FindBlock(shape, task / shape.heads), task % shape.heads, q, k, v, o, lse, scores);
    });
  });
}

void AttentionBackward(const Exec& exec, const AttentionShape& shape, const Tensor& d_o, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, void* scratch) {
  const BackwardTensors tensors{d_o, q, k, v, o, lse, dq, dk, dv};
  auto* const order =
      static_cast<int64_t*>(exec.cpu().doc_order.Reserve((shape.docs + 1) * static_cast<int64_t>(sizeof(int64_t))));
  for (int64_t doc = 0; doc < shape.docs; ++doc) order[doc] = doc;
  std::sort(order, order + shape.docs, [&shape](int64_t a, int64_t b) {
    const int64_t length_a = DocLength(shape, a), length_b = DocLength(shape, b);
    return length_a != length_b ? length_a > length_b : a < b;
  });
  const int64_t group = shape.heads / shape.kv_heads;
  WithFloatType(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelTasks(exec, shape.docs * shape.kv_heads, [&](int64_t task, int thread) {
      const int64_t doc = order[task / shape.kv_heads];
      const int64_t kv_head = task % shape.kv_heads;
      const int64_t length = DocLength(shape, doc);
      T* const scores = static_cast<T*>(scratch) + 2 * thread * ScoreElements(shape.longest_doc);
      T* const gradients = scores + ScoreElements(shape.longest_doc);
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        // The last block sees all keys: it comes first and overwrites, so nothing needs to be zeroed.
        for (int64_t index = BlocksOf(length) - 1; index >= 0; --index) {
          const bool first = head == kv_head * group && index == BlocksOf(length) - 1;
          BackwardBlock<T>(shape, BlockOfDoc(shape.doc_offsets[doc], length, index), head, first, tensors, scores,
                           gradients);
        }
      }
    });
  });
}

}  // namespace longhaul::kernels::cpu

namespace longhaul::kernels {

// A block of scores a thread (two in the backward pass). `heads`, `kv_heads` and `head_dim` do not matter on the CPU.
int64_t AttentionScratchBytes(DType dtype, int threads, int64_t heads, int64_t kv_heads, int64_t head_dim,
                              int64_t longest_doc, bool backward) {
  LH_CHECK(heads > 0 && kv_heads > 0 && head_dim > 0 && longest_doc >= 0);
  return threads * (backward ? 2 : 1) * cpu::ScoreElements(longest_doc) * DTypeBytes(dtype);
}

}  // namespace longhaul::kernels
