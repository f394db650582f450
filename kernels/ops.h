// Every op of the engine. One name and one dispatching signature each; backend from the Exec, dtypes from the views.
// Types, unless said otherwise: all activations of one call have one dtype. On the CPU kF32 (runs) or kF64 (the
// oracle), on CUDA kBF16 (runs) or kF32. "Stat" is StatType of it, kF64 for kF64 and else kF32: row statistics, norm
// weights where they are not of the activations' type, tables of RoPE, gradients, masters and moments of the adapter.
// Sums are taken in f64 for kF64 and, where the text says "in double", on the CPU also for kF32; on CUDA in f32, in an
// order that depends on the shape alone, each result rounded to the output's type once.
// Memory: tensors, index arrays and results lie in the Exec's memory; only doubles and sizes passed by value are the
// caller's. So nothing waits for the device: what the host wants to know it downloads later (Exec::Download).
// Outputs may not alias inputs; a mismatch of shapes or dtypes is a CHECK. An index out of range is a CHECK on the CPU
// and ends the kernel (CudaError) on CUDA. No op allocates: scratch is handed in or belongs to the Exec. Results do not
// depend on how rows are cut into calls (on CUDA: for views of the same alignment). CUDA: queued on the Exec's compute
// stream; a failed launch throws CudaError. Tests: tests/kernels/<op>_test.cc, one body for every backend and type.
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

// ---- LoRA on a frozen product, CPU (kernels/cpu/lora.cc); CUDA folds in a way of its own (cuda/engine_linears.h) ----

inline constexpr int64_t kMaxLoraParts = 3;  // q, k and v share an input

// Parts that share the input of one frozen W: their A's one below the other, each B over a range of W's rows.
struct LoraFactors {
  double scale = 1;  // s
  int64_t rank = 0;
  int64_t count = 0;
  Tensor a;  // [count * rank, in]
  struct Part {
    Tensor b;               // [part's out, rank]
    int64_t out_begin = 0;  // first of the columns of y
  } parts[kMaxLoraParts];
  void* rounded = nullptr;  // where W is packed in bf16: memory for A and B in bf16, LoraFactorBytes of it
};

int64_t LoraFactorBytes(const LoraFactors& lora);

// u = x A^T; y = beta * y + x W^T + s u_i B_i^T per part. x [n, in], y [n, out], u [n, count * rank]; y's data may be
// null: u alone. Types and `scratch` as FrozenForward's; where W is packed in bf16, so are A, B and s u for their
// products, and a row of u has the same bits with and without y.
void LoraForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, const LoraFactors& lora, double beta,
                 const Tensor& y, const Tensor& u, void* scratch);
// v_i = s dy_i B_i; dx = dy W + v A. dy [n, out], dx [n, in], v [n, count * rank]; dx's data may be null: v alone.
void LoraBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, const LoraFactors& lora, const Tensor& dx,
                  const Tensor& v, void* scratch);

// ---- Normalisation, positions, activation (norm, rope, activation, elementwise) ----

// y = x * w / sqrt(mean(x^2) + eps), per row. x,y [rows, cols]; w [1, cols], of x's type or Stat; rstd [rows, 1] Stat
// (may be null data). y may alias x. Mean in double.
void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd);
// x += delta, then y = RmsNorm(x): the sum is rounded to x's type first, so that y is that of the stored x.
void AddRmsNorm(const Exec& exec, const Tensor& delta, const Tensor& w, double eps, const Tensor& x, const Tensor& y,
                const Tensor& rstd);
// dx (+)= rstd * (dy*w - xhat * mean(dy*w*xhat)), xhat = x * rstd. dx may alias dy. w is frozen.
void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx);
// The same for rows that were gathered: dx[ids[i]] is that of dy[i], rstd[i] and x[ids[i]]. dy [rows, cols] Stat, so
// that what a loss gives is rounded once, here; x, dx [anything, cols]. ids are distinct but for rows whose dy is zero.
void RmsNormBackwardRows(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                         const int32_t* ids, const Tensor& dx);
// RmsNorm and its backward pass per head: x,y [rows, heads * head_dim] strided; w [1, head_dim]; rstd [rows, heads]. y
// may alias x.
void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd);
// x is the input of the forward. dx may alias dy.
void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx);

// Rotate-half RoPE in place on x [rows, heads * head_dim]. cos, sin [positions, head_dim / 2] Stat; positions [rows]
// i32 index them. inverse: rotates back (the backward pass).
void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse);

// Rope's tables and positions.
struct Rotation {
  Tensor cos, sin;
  const int32_t* positions = nullptr;
};
// y = Rope(HeadRmsNorm(x)), rounded once, and raw = x, which the backward pass needs. raw and rstd may have null data;
// y may alias x, raw may not.
void HeadRmsNormRope(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps,
                     const Rotation& rotation, const Tensor& raw, const Tensor& y, const Tensor& rstd);
// HeadRmsNormBackward of dy turned back, rounded once. x is the input of the forward. dx may alias dy.
void HeadRmsNormRopeBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                             const Tensor& rstd, const Rotation& rotation, const Tensor& dx);

// y = silu(gate) * up. All [rows, cols].
void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y);
// dgate = dy * up * silu'(gate); dup = dy * silu(gate). dgate may alias gate, dup may alias up; y, where its data is
// not null, receives the forward product (down's LoRA gradient needs it) before anything is overwritten.
void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y);
// The same with gelu(x) = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) in silu's place (Gemma).
void GeGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y);
void GeGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                   const Tensor& dup, const Tensor& y);

void Add(const Exec& exec, const Tensor& x, const Tensor& y);   // y += x
void Scale(const Exec& exec, double factor, const Tensor& x);   // x *= factor
void Copy(const Exec& exec, const Tensor& x, const Tensor& y);  // y = x, converting f32 <-> f64 <-> bf16 (CUDA: no f64)
// y = factor * x, rounded once: a bf16 copy of s * B from its f32 master. Types as for Copy.
void CopyScaled(const Exec& exec, double factor, const Tensor& x, const Tensor& y);
void Zero(const Exec& exec, const Tensor& x);
// y[i] = table[ids[i]]. table [vocab, cols] f32, bf16 or f64 (CUDA: no f64); y [rows, cols].
void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y);
// y[ids[i]] = x[i]. x [rows, cols]; y [anything, cols] of the same type; ids are distinct.
void ScatterRows(const Exec& exec, const Tensor& x, const int32_t* ids, const Tensor& y);
// Inverted dropout: y[r, c] = x[r, c] * keep(key, (first_row + r) * cols + c) / (1 - p). y may alias x. The mask
// depends on key and absolute position only, so recomputation and backward replay it; it is the same on every backend.
void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y);
// y[r, c] = shift + width * (u - 0.5) with u uniform in [0, 1): number (first_row + r) * cols + c of `key`'s counter.
// Made-up weights; taken in double and rounded to f32, so that every backend makes the same. y f32.
void Uniform(const Exec& exec, uint64_t key, int64_t first_row, double width, double shift, const Tensor& y);
// *count += the number of elements that are NaN or infinite.
void CountNonFinite(const Exec& exec, const Tensor& x, int64_t* count);

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

// ---- Loss (loss) ----

inline constexpr int32_t kNotTrained = -100;  // the label of a row that is not trained

// Sums over trained rows, in the Exec's memory. Set to zero by the caller (Zero or Upload).
struct LossTotals {
  double nats = 0;      // of -log p(label); not finite where a row's logits are not
  int64_t correct = 0;  // rows whose label has the largest logit
};

// One tile of rows against the whole vocabulary: logits [rows, vocab], activations' type or Stat; labels [rows].
// Adds to *totals, in double, in row order. Where grad_scale is not null overwrites logits with *grad_scale *
// (softmax - onehot), zero rows where not trained. lse [rows, 1] Stat (may be null data): log of the sum of the
// exponentials, 0 where not trained. REQUIRES (CUDA): rows <= limits::kMaxLossTileRows.
void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, const double* grad_scale,
              const Tensor& lse, LossTotals* totals);

// The same over tiles of the vocabulary, of which only one exists at a time and which is made once:
//   BeginLoss; per tile: logits, UpdateLoss, and what the weights are for; FinishLoss.
// Running values of a row, each [rows, 1] Stat and contiguous.
struct LossRows {
  Tensor largest;      // of the logits so far
  Tensor sum;          // of e^(logit - largest)
  Tensor label_logit;  // NaN until the label's tile was seen
};
void BeginLoss(const Exec& exec, const LossRows& rows);
// logits [rows, cols]: columns [first_col, first_col + cols) of the vocabulary. For a gradient through what the logits
// were made from, sum over columns of softmax * row, before the sum of exponentials is known:
// weights [rows, cols] (may have null data): e^(logit - largest), 0 at the label, which comes last and exactly, and in
// rows that are not trained. The logits' type, or on CUDA bf16. They may take the logits' place, each row beginning
// where its logits began.
// sums [rows, any] f32 (may have null data; not in the first tile): what earlier tiles' weights were summed to; becomes
// relative to the largest logit known now.
// REQUIRES (CUDA): cols <= limits::kMaxLossTileCols.
void UpdateLoss(const Exec& exec, const Tensor& logits, int64_t first_col, const int32_t* labels, const LossRows& rows,
                const Tensor& weights, const Tensor& sums);
// Adds to *totals; lse [rows, 1] as above.
void FinishLoss(const Exec& exec, const LossRows& rows, const int32_t* labels, const Tensor& lse, LossTotals* totals);

// ---- Optimizer (optimizer) ----

// The numbers of a run.
struct AdamWConfig {
  double beta1, beta2, epsilon, weight_decay;
  double max_grad_norm;  // 0: no clipping
};
// The numbers of an update, in the Exec's memory: what the update needs is only known there while a step runs.
struct UpdateState {
  double learning_rate = 0;  // written before PrepareUpdate
  int64_t steps = 0;         // updates that were not skipped, this one included: the exponent of the bias correction
  int64_t skipped = 0;       // updates that were
  double grad_norm = 0;      // before clipping
  double grad_scale = 0;     // clipping factor, applied to the gradient as it is read
  double step_size = 0;      // learning_rate / (1 - beta1^steps)
  double inverse_sqrt_bias2 = 0;  // 1 / sqrt(1 - beta2^steps)
  double keep = 0;                // 1 - learning_rate * weight_decay
  int64_t skip = 0;               // 1: this update changes nothing
};
// Sum of squares in double over fixed chunks of 4,096 elements, added in a fixed order: the same bits for any thread
// count. *sum is set. Non-finite input gives a non-finite sum. x: Stat, contiguous.
void SumOfSquares(const Exec& exec, const Tensor& x, double* sum);
// Fills *state from the learning rate in it: norm = sqrt(*sum_of_squares), clipping factor min(1, max_grad_norm /
// (norm + 1e-6)). The update is skipped, and counted, where the norm or *loss (null: not looked at) is not finite.
void PrepareUpdate(const Exec& exec, const AdamWConfig& config, const double* sum_of_squares, const double* loss,
                   UpdateState* state);
// FORMATS.md section 9. p, g, m, v Stat, contiguous, of one size. g is not changed.
void AdamW(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
           const Tensor& m, const Tensor& v);
// The same with moments of 8 bits: codes of the dynamic maps (kernels/dynamic_map.h; m signed, v unsigned), a scale for
// every 256 elements. All zero bytes is the state of no steps for the scales; codes start as Zero leaves them.
inline constexpr int64_t kMomentBlock = 256;
struct Moments8bit {
  Tensor m, v;              // kU8, of p's size, contiguous
  Tensor m_scale, v_scale;  // f32, [1, ceil(size / 256)]
};
void AdamW8bit(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
               const Moments8bit& moments);

// ---- NF4 (nf4) ----

// A frozen matrix of out x in values as bitsandbytes stores it (FORMATS.md section 2), flattened row-major, so that a
// block may cross rows.
struct Nf4Weight {
  int64_t out = 0;
  int64_t in = 0;
  int64_t block = 64;                 // values a scale; a power of two from 32 to 4096
  DType rounded_to = DType::kBF16;    // the recorded type, kBF16, kF16 or kF32: what a value is rounded to first
  uint8_t* packed = nullptr;          // [ceil(out * in / 2)], the even value in the high nibble
  float* absmax = nullptr;            // [blocks]; where nested, only Nf4Quantize and Nf4NestAbsmax use it
  uint8_t* absmax_codes = nullptr;    // [blocks]; null: not nested, absmax counts
  float* nested_absmax = nullptr;     // [ceil(blocks / 256)]
  float* nested_offset = nullptr;     // [1]
  const float* nested_map = nullptr;  // [256] of this checkpoint; null: bitsandbytes' own
  int64_t blocks() const { return (out * in + block - 1) / block; }
};
// Writes packed and absmax. w [out, in] f32, bf16 or f16, contiguous. Bit-exact with bitsandbytes: on CUDA with its
// CUDA kernels, whose reciprocal is approximate; on the CPU with the exact one (base/nf4.h says where that differs).
// REQUIRES: w is finite (CountNonFinite finds out; the CPU CHECKs).
void Nf4Quantize(const Exec& exec, const Tensor& w, const Nf4Weight& to);
// Quantises absmax (which stays as it is) into absmax_codes and nested_absmax, around nested_offset: the mean, written
// first, or what is there where keep_offset.
void Nf4NestAbsmax(const Exec& exec, const Nf4Weight& w, bool keep_offset);
// y[i, j] = value, rounded to w.rounded_to and then to y's type. y: rows [first_row, first_row + y.rows) of the
// matrix, f32 or bf16, cols = in, any stride. The same bits on every backend.
void Nf4Dequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y);

}  // namespace longhaul::kernels
