// Every op of the engine. One name and one dispatching signature each; backend from the Exec, dtypes from the views.
// Unless said otherwise: all float tensors of one call have one dtype, kF32 (runs) or kF64 (the oracle); sums are taken
// in f64 for kF64 and, where the text says "in double", also for kF32; outputs may not alias inputs; a mismatch of
// shapes or dtypes is a CHECK. No op allocates: scratch is handed in. Results do not depend on how rows are cut into
// calls. Tests: tests/kernels/<op>_test.cc.
#pragma once

#include <cstdint>

#include "kernels/exec.h"
#include "kernels/tensor.h"

namespace longhaul::kernels {

// ---- GEMM (kernels/cpu/gemm.cc, packed_gemm.cc) ----

// c = alpha * op(a) * op(b) + beta * c. op is the transpose where the flag says so.
// Shapes: op(a) [m, k]; op(b) [k, n]; c [m, n]; any strides. f32 by oneDNN, f64 by our own blocked loop.
// Safe to call from inside an OpenMP region (runs on the calling thread then).
void Gemm(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
          double beta, const Tensor& c);

// A frozen weight W [out, in] laid out once for y = x W^T (forward) and dx = dy W (backward).
// Plain: both pointers are the same [out, in] matrix of f32 (f64 for the oracle). Packed: a layout of this CPU's (the
// library's blocks or our column panels, kernels/README.md), f32 or bf16, one copy a direction; 64-byte aligned.
struct FrozenWeight {
  int64_t out = 0;
  int64_t in = 0;
  DType dtype = DType::kF32;
  bool packed = false;
  void* forward = nullptr;
  void* backward = nullptr;
};

// Bytes of one direction's packed copy, in the Exec's GEMM type; what PackWeight writes. At most
// RoundUp(out, 64) * RoundUp(in, 64) * element bytes, the memory plan's formula.
int64_t PackedWeightBytes(const Exec& exec, int64_t out, int64_t in, bool backward);
// rows: W [out, in] f32, contiguous. Writes w.forward and w.backward, each unless null, as w says (bf16 rounds to
// nearest even). REQUIRES: w.packed.
void PackWeight(const Exec& exec, const Tensor& rows, const FrozenWeight& w);

// y = beta * y + x W^T. x [n, in], y [n, out], f32 or f64 (W of the same; packed bf16 with f32 x: x is rounded into
// `scratch`, of FrozenGemmScratchBytes). beta is 0 or 1.
void FrozenForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, double beta, const Tensor& y,
                   void* scratch);
// dx = beta * dx + dy W. dy [n, out], dx [n, in].
void FrozenBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, double beta, const Tensor& dx,
                    void* scratch);
// Scratch for either direction over at most `rows` rows: bf16 RoundUp(rows, 64) * max(out, in) * 2, f32 0.
int64_t FrozenGemmScratchBytes(GemmType type, int64_t rows, int64_t out, int64_t in);

// ---- Normalisation, positions, activation (cpu/elementwise) ----

// y = x * w / sqrt(mean(x^2) + eps), per row. x,y [rows, cols]; w [1, cols]; rstd [rows, 1] (may be null data).
// y may alias x. Mean in double.
void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd);
// dx (+)= rstd * (dy*w - xhat * mean(dy*w*xhat)), xhat = x * rstd. dx may alias dy. w is frozen.
void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx);
// The same per head: x,y [rows, heads * head_dim] strided; w [1, head_dim]; rstd [rows, heads]. y may alias x.
void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd);
// x is the input of the forward. dx may alias dy.
void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx);

// Rotate-half RoPE in place on x [rows, heads * head_dim]. cos, sin [positions, head_dim / 2]; positions [rows] i32
// index them. inverse: rotates back (the backward pass).
void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse);

// y = silu(gate) * up. All [rows, cols].
void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y);
// dgate = dy * up * silu'(gate); dup = dy * silu(gate). dgate may alias gate, dup may alias up; y, where its data is
// not null, receives the forward product (down's LoRA gradient needs it) before anything is overwritten.
void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y);

void Add(const Exec& exec, const Tensor& x, const Tensor& y);   // y += x
void Scale(const Exec& exec, double factor, const Tensor& x);   // x *= factor
void Copy(const Exec& exec, const Tensor& x, const Tensor& y);  // y = x, converting f32 <-> f64 <-> bf16
void Zero(const Exec& exec, const Tensor& x);
// y[i] = table[ids[i]]. table [vocab, cols] f32, bf16 or f64; y [rows, cols].
void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y);
// Inverted dropout: y[r, c] = x[r, c] * keep(key, (first_row + r) * cols + c) / (1 - p). y may alias x. The mask
// depends on key and absolute position only, so recomputation and backward replay it.
void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y);

// ---- Attention (cpu/attention.cc) ----

// Causal grouped-query attention over packed documents that never see each other.
// q [n, heads * head_dim], k, v [n, kv_heads * head_dim] (strided: column ranges of one qkv buffer), after RoPE;
// o [n, heads * head_dim]; lse [n, heads] (natural log, of scaled scores).
struct AttentionShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  double scale = 0;                      // head_dim^-1/2
  const int64_t* doc_offsets = nullptr;  // [docs + 1], doc_offsets[docs] == n
  int64_t docs = 0;
  int64_t longest_doc = 0;  // the plan's bound; sizes the scratch
};
// A thread needs min(128, longest_doc) x RoundUp(longest_doc, 16) elements, twice that backward.
int64_t AttentionScratchBytes(DType dtype, int threads, int64_t heads, int64_t kv_heads, int64_t head_dim,
                              int64_t longest_doc, bool backward);
void AttentionForward(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& o, const Tensor& lse, void* scratch);
// dq, dk, dv are overwritten. dq may alias q only if dk, dv do not alias k, v. delta = rowsum(do * o) is computed
// inside.
void AttentionBackward(const Exec& exec, const AttentionShape& shape, const Tensor& d_o, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, void* scratch);

// ---- Loss (cpu/loss.cc) ----

// One tile of rows against the whole vocabulary: logits [rows, vocab] f32/f64; labels [rows], -100 = not trained.
// Adds sum over trained rows of (lse - logit[label]) to *loss_sum, in double, in row order. Where grad_scale != 0
// overwrites logits with grad_scale * (softmax - onehot), zero rows where not trained. Counts argmax == label into
// *correct if not null.
void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, double grad_scale, double* loss_sum,
              int64_t* correct);

// ---- Optimizer (cpu/optimizer.cc) ----

struct AdamWParams {
  double learning_rate, beta1, beta2, epsilon, weight_decay;
  int64_t step;       // 1-based, for the bias correction
  double grad_scale;  // clipping factor, applied to the gradient as it is read
};
// FORMATS.md section 9. p, g, m, v contiguous, of one size. g is not changed.
void AdamW(const Exec& exec, const AdamWParams& params, const Tensor& p, const Tensor& g, const Tensor& m,
           const Tensor& v);
// Sum of squares in double over fixed chunks of 4,096 elements, added in chunk order: the same bits for any thread
// count. Non-finite input gives a non-finite sum.
double SumOfSquares(const Exec& exec, const Tensor& x);

}  // namespace longhaul::kernels
