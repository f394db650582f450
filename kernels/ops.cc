// Checks, then the backend's body. A failed check is a bug of the engine, not of a user.
#include "kernels/ops.h"

#include "base/check.h"
#include "base/nf4.h"
#include "kernels/op_table.h"

namespace longhaul::kernels {
namespace {

// What a backend computes in.
bool IsActivation(const Exec& exec, const Tensor& x) {
  if (exec.backend() == Backend::kCuda) return x.dtype == DType::kF32 || x.dtype == DType::kBF16;
  return x.dtype == DType::kF32 || x.dtype == DType::kF64;
}

// What it reads and writes in copies.
bool IsFloat(const Exec& exec, const Tensor& x) { return IsActivation(exec, x) || x.dtype == DType::kBF16; }

bool IsStat(const Exec& exec, const Tensor& x) { return IsActivation(exec, x) && x.dtype == StatType(x.dtype); }

bool SameType(const Tensor& a, const Tensor& b) { return a.dtype == b.dtype; }

bool SameShape(const Tensor& a, const Tensor& b) { return a.rows == b.rows && a.cols == b.cols && SameType(a, b); }

// rows x cols statistics over x; `optional`: its data may be null.
bool IsStatOf(const Tensor& x, const Tensor& stat, int64_t rows, int64_t cols, bool optional = false) {
  if (stat.data == nullptr) return optional;
  return stat.dtype == StatType(x.dtype) && stat.rows == rows && stat.cols == cols;
}

template <typename Op>
Op Body(Op body) {
  LH_CHECK(body != nullptr, "this backend has no such op");
  return body;
}

void CheckAttention(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                    const Tensor& o, const Tensor& lse) {
  LH_CHECK(IsActivation(exec, q) && SameType(q, k) && SameType(q, v) && SameType(q, o) &&
           lse.dtype == StatType(q.dtype));
  LH_CHECK(shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0);
  LH_CHECK(q.cols == shape.heads * shape.head_dim && SameShape(q, o));
  LH_CHECK(k.rows == q.rows && k.cols == shape.kv_heads * shape.head_dim && SameShape(k, v));
  LH_CHECK(lse.rows == q.rows && lse.cols == shape.heads);
  LH_CHECK(shape.docs >= 0 && shape.doc_offsets != nullptr && shape.doc_offsets[0] == 0);
  LH_CHECK(shape.doc_offsets[shape.docs] == q.rows);
  for (int64_t d = 0; d < shape.docs; ++d) {
    const int64_t length = shape.doc_offsets[d + 1] - shape.doc_offsets[d];
    LH_CHECK(length >= 0 && length <= shape.longest_doc, std::to_string(length));
  }
}

void CheckNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, const Tensor& y, const Tensor& rstd,
               bool rstd_optional) {
  LH_CHECK(IsActivation(exec, x) && SameShape(x, y) && heads > 0 && x.cols == heads * w.cols && w.rows == 1);
  LH_CHECK(SameType(x, w) || w.dtype == StatType(x.dtype));
  LH_CHECK(IsStatOf(x, rstd, x.rows, heads, rstd_optional));
}

void CheckRotation(const Tensor& x, int64_t heads, const Rotation& rotation) {
  LH_CHECK(rotation.cos.dtype == StatType(x.dtype) && SameShape(rotation.cos, rotation.sin));
  LH_CHECK(heads > 0 && x.cols == heads * 2 * rotation.cos.cols);
}

void CheckGated(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  LH_CHECK(IsActivation(exec, gate) && SameShape(gate, up) && SameShape(gate, y));
}

void CheckGatedBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                        const Tensor& dup, const Tensor& y) {
  LH_CHECK(IsActivation(exec, gate) && SameShape(gate, dy) && SameShape(gate, up) && SameShape(gate, dgate));
  LH_CHECK(SameShape(gate, dup) && (y.data == nullptr || SameShape(gate, y)));
}

// f64 and bf16 never meet: the CPU converts through f32, CUDA has no f64.
void CheckCopy(const Exec& exec, const Tensor& x, const Tensor& y) {
  LH_CHECK(x.cols == y.cols && IsFloat(exec, x) && IsFloat(exec, y));
}

void CheckLogits(const Exec& exec, const Tensor& logits, const Tensor& lse, bool lse_optional) {
  LH_CHECK(IsActivation(exec, logits) && logits.cols > 0);
  LH_CHECK(IsStatOf(logits, lse, logits.rows, 1, lse_optional));
}

void CheckLossRows(const Exec& exec, const LossRows& rows) {
  for (const Tensor* t : {&rows.largest, &rows.sum, &rows.label_logit}) {
    LH_CHECK(t->data != nullptr && IsStat(exec, *t) && SameShape(*t, rows.largest) && t->cols == 1 && t->contiguous());
  }
}

void CheckMaster(const Exec& exec, const Tensor& p, const Tensor& other) {
  LH_CHECK(IsStat(exec, p) && p.contiguous() && SameShape(p, other) && other.contiguous());
}

void CheckNf4(const Nf4Weight& w) {
  LH_CHECK(w.out > 0 && w.in > 0 && IsNf4BlockSize(w.block) && w.packed != nullptr);
  LH_CHECK(w.rounded_to == DType::kBF16 || w.rounded_to == DType::kF16 || w.rounded_to == DType::kF32);
  if (w.absmax_codes == nullptr) {
    LH_CHECK(w.absmax != nullptr);
  } else {
    LH_CHECK(w.nested_absmax != nullptr && w.nested_offset != nullptr);
  }
}

// `t`: u or v, over rows of `x`.
void CheckLora(const Exec& exec, const FrozenWeight& w, const LoraFactors& lora, const Tensor& x, const Tensor& t) {
  LH_CHECK(IsActivation(exec, x) && (w.packed ? x.dtype == DType::kF32 : x.dtype == w.dtype));
  LH_CHECK(lora.rank > 0 && lora.count > 0 && lora.count <= kMaxLoraParts);
  LH_CHECK(SameType(lora.a, x) && lora.a.rows == lora.count * lora.rank && lora.a.cols == w.in);
  LH_CHECK(SameType(t, x) && t.rows == x.rows && t.cols == lora.a.rows);
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraFactors::Part& part = lora.parts[i];
    LH_CHECK(SameType(part.b, x) && part.b.cols == lora.rank && part.out_begin >= 0);
    LH_CHECK(part.out_begin + part.b.rows <= w.out);
  }
}

}  // namespace

void Gemm(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
          double beta, const Tensor& c) {
  LH_CHECK(IsActivation(exec, a) && SameType(a, b) && SameType(a, c));
  LH_CHECK((transpose_a ? a.cols : a.rows) == c.rows && (transpose_b ? b.rows : b.cols) == c.cols);
  LH_CHECK((transpose_a ? a.rows : a.cols) == (transpose_b ? b.cols : b.rows));
  LH_CHECK((transpose_a ? a.rows : a.cols) > 0);
  Body(exec.ops().gemm)(exec, transpose_a, transpose_b, alpha, a, b, beta, c);
}

void FrozenForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, double beta, const Tensor& y,
                   void* scratch) {
  LH_CHECK(x.rows == y.rows && x.cols == w.in && y.cols == w.out && SameType(x, y) && (beta == 0 || beta == 1));
  LH_CHECK(w.packed ? x.dtype == DType::kF32 : x.dtype == w.dtype);
  Body(exec.ops().frozen_forward)(exec, x, w, beta, y, scratch);
}

void FrozenBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, double beta, const Tensor& dx,
                    void* scratch) {
  LH_CHECK(dy.rows == dx.rows && dy.cols == w.out && dx.cols == w.in && SameType(dy, dx) && (beta == 0 || beta == 1));
  LH_CHECK(w.packed ? dy.dtype == DType::kF32 : dy.dtype == w.dtype);
  Body(exec.ops().frozen_backward)(exec, dy, w, beta, dx, scratch);
}

void LoraForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, const LoraFactors& lora, double beta,
                 const Tensor& y, const Tensor& u, void* scratch) {
  CheckLora(exec, w, lora, x, u);
  LH_CHECK(x.cols == w.in && (beta == 0 || beta == 1));
  LH_CHECK(y.data == nullptr || (SameType(x, y) && y.rows == x.rows && y.cols == w.out));
  Body(exec.ops().lora_forward)(exec, x, w, lora, beta, y, u, scratch);
}

void LoraBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, const LoraFactors& lora, const Tensor& dx,
                  const Tensor& v, void* scratch) {
  CheckLora(exec, w, lora, dy, v);
  LH_CHECK(dy.cols == w.out && (dx.data == nullptr || (SameType(dx, dy) && dx.rows == dy.rows && dx.cols == w.in)));
  Body(exec.ops().lora_backward)(exec, dy, w, lora, dx, v, scratch);
}

void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd) {
  CheckNorm(exec, x, w, 1, y, rstd, /*rstd_optional=*/true);
  Body(exec.ops().rms_norm)(exec, x, w, eps, y, rstd);
}

void AddRmsNorm(const Exec& exec, const Tensor& delta, const Tensor& w, double eps, const Tensor& x, const Tensor& y,
                const Tensor& rstd) {
  CheckNorm(exec, x, w, 1, y, rstd, /*rstd_optional=*/true);
  LH_CHECK(SameShape(x, delta));
  Body(exec.ops().add_rms_norm)(exec, delta, w, eps, x, y, rstd);
}

void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx) {
  CheckNorm(exec, x, w, 1, dx, rstd, /*rstd_optional=*/false);
  LH_CHECK(SameShape(x, dy));
  Body(exec.ops().rms_norm_backward)(exec, dy, x, w, rstd, accumulate, dx);
}

void RmsNormBackwardRows(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                         const int32_t* ids, const Tensor& dx) {
  CheckNorm(exec, x, w, 1, dx, {}, /*rstd_optional=*/true);
  LH_CHECK(IsStatOf(x, rstd, dy.rows, 1, /*optional=*/false) && IsStatOf(x, dy, dy.rows, x.cols, /*optional=*/false));
  LH_CHECK(ids != nullptr);
  Body(exec.ops().rms_norm_backward_rows)(exec, dy, x, w, rstd, ids, dx);
}

void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd) {
  CheckNorm(exec, x, w, heads, y, rstd, /*rstd_optional=*/true);
  Body(exec.ops().head_rms_norm)(exec, x, w, heads, eps, y, rstd);
}

void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx) {
  CheckNorm(exec, x, w, heads, dx, rstd, /*rstd_optional=*/false);
  LH_CHECK(SameShape(x, dy));
  Body(exec.ops().head_rms_norm_backward)(exec, dy, x, w, heads, rstd, dx);
}

void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse) {
  LH_CHECK(IsActivation(exec, x));
  CheckRotation(x, heads, {cos, sin, positions});
  Body(exec.ops().rope)(exec, x, heads, cos, sin, positions, inverse);
}

void HeadRmsNormRope(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps,
                     const Rotation& rotation, const Tensor& raw, const Tensor& y, const Tensor& rstd) {
  CheckNorm(exec, x, w, heads, y, rstd, /*rstd_optional=*/true);
  CheckRotation(x, heads, rotation);
  LH_CHECK(raw.data == nullptr || (SameShape(x, raw) && raw.data != x.data && raw.data != y.data));
  Body(exec.ops().head_rms_norm_rope)(exec, x, w, heads, eps, rotation, raw, y, rstd);
}

void HeadRmsNormRopeBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                             const Tensor& rstd, const Rotation& rotation, const Tensor& dx) {
  CheckNorm(exec, x, w, heads, dx, rstd, /*rstd_optional=*/false);
  CheckRotation(x, heads, rotation);
  LH_CHECK(SameShape(x, dy));
  Body(exec.ops().head_rms_norm_rope_backward)(exec, dy, x, w, heads, rstd, rotation, dx);
}

void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  CheckGated(exec, gate, up, y);
  Body(exec.ops().swi_glu)(exec, gate, up, y);
}

void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y) {
  CheckGatedBackward(exec, dy, gate, up, dgate, dup, y);
  Body(exec.ops().swi_glu_backward)(exec, dy, gate, up, dgate, dup, y);
}

void GeGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  CheckGated(exec, gate, up, y);
  Body(exec.ops().ge_glu)(exec, gate, up, y);
}

void GeGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                   const Tensor& dup, const Tensor& y) {
  CheckGatedBackward(exec, dy, gate, up, dgate, dup, y);
  Body(exec.ops().ge_glu_backward)(exec, dy, gate, up, dgate, dup, y);
}

void Add(const Exec& exec, const Tensor& x, const Tensor& y) {
  LH_CHECK(IsActivation(exec, x) && SameShape(x, y));
  Body(exec.ops().add)(exec, x, y);
}

void Scale(const Exec& exec, double factor, const Tensor& x) {
  LH_CHECK(IsActivation(exec, x));
  Body(exec.ops().scale)(exec, factor, x);
}

void Copy(const Exec& exec, const Tensor& x, const Tensor& y) { CopyScaled(exec, 1, x, y); }

void CopyScaled(const Exec& exec, double factor, const Tensor& x, const Tensor& y) {
  CheckCopy(exec, x, y);
  LH_CHECK(x.rows == y.rows);
  Body(exec.ops().copy_scaled)(exec, factor, x, y);
}

void Zero(const Exec& exec, const Tensor& x) { Body(exec.ops().zero)(exec, x); }

void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y) {
  CheckCopy(exec, table, y);
  Body(exec.ops().gather_rows)(exec, table, ids, y);
}

void ScatterRows(const Exec& exec, const Tensor& x, const int32_t* ids, const Tensor& y) {
  CheckCopy(exec, x, y);
  LH_CHECK(SameType(x, y));
  Body(exec.ops().scatter_rows)(exec, x, ids, y);
}

void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y) {
  LH_CHECK(IsActivation(exec, x) && SameShape(x, y) && p >= 0 && p < 1);
  Body(exec.ops().dropout)(exec, x, key, first_row, p, y);
}

void Uniform(const Exec& exec, uint64_t key, int64_t first_row, double width, double shift, const Tensor& y) {
  LH_CHECK(y.dtype == DType::kF32 && first_row >= 0);
  Body(exec.ops().uniform)(exec, key, first_row, width, shift, y);
}

void CountNonFinite(const Exec& exec, const Tensor& x, int64_t* count) {
  LH_CHECK(IsActivation(exec, x));
  Body(exec.ops().count_non_finite)(exec, x, count);
}

void AttentionForward(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& o, const Tensor& lse, void* scratch) {
  CheckAttention(exec, shape, q, k, v, o, lse);
  Body(exec.ops().attention_forward)(exec, shape, q, k, v, o, lse, scratch);
}

void AttentionBackward(const Exec& exec, const AttentionShape& shape, const Tensor& d_o, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, void* scratch) {
  CheckAttention(exec, shape, q, k, v, o, lse);
  LH_CHECK(SameShape(q, d_o) && SameShape(q, dq) && SameShape(k, dk) && SameShape(v, dv));
  Body(exec.ops().attention_backward)(exec, shape, d_o, q, k, v, o, lse, dq, dk, dv, scratch);
}

void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, const double* grad_scale,
              const Tensor& lse, LossTotals* totals) {
  CheckLogits(exec, logits, lse, /*lse_optional=*/true);
  Body(exec.ops().loss_tile)(exec, logits, labels, grad_scale, lse, totals);
}

void BeginLoss(const Exec& exec, const LossRows& rows) {
  CheckLossRows(exec, rows);
  Body(exec.ops().begin_loss)(exec, rows);
}

void UpdateLoss(const Exec& exec, const Tensor& logits, int64_t first_col, const int32_t* labels, const LossRows& rows,
                const Tensor& weights, const Tensor& sums) {
  CheckLossRows(exec, rows);
  CheckLogits(exec, logits, rows.largest, /*lse_optional=*/false);
  if (weights.data != nullptr) {
    LH_CHECK(IsActivation(exec, weights) && weights.rows == logits.rows && weights.cols == logits.cols);
  }
  if (sums.data != nullptr) LH_CHECK(IsStat(exec, sums) && sums.rows == logits.rows);
  Body(exec.ops().update_loss)(exec, logits, first_col, labels, rows, weights, sums);
}

void FinishLoss(const Exec& exec, const LossRows& rows, const int32_t* labels, const Tensor& lse, LossTotals* totals) {
  CheckLossRows(exec, rows);
  LH_CHECK(SameShape(rows.largest, lse));
  Body(exec.ops().finish_loss)(exec, rows, labels, lse, totals);
}

void SumOfSquares(const Exec& exec, const Tensor& x, double* sum) {
  LH_CHECK(IsStat(exec, x) && x.contiguous());
  Body(exec.ops().sum_of_squares)(exec, x, sum);
}

void PrepareUpdate(const Exec& exec, const AdamWConfig& config, const double* sum_of_squares, const double* loss,
                   UpdateState* state) {
  Body(exec.ops().prepare_update)(exec, config, sum_of_squares, loss, state);
}

void AdamW(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
           const Tensor& m, const Tensor& v) {
  for (const Tensor* t : {&g, &m, &v}) CheckMaster(exec, p, *t);
  Body(exec.ops().adam_w)(exec, config, state, p, g, m, v);
}

void AdamW8bit(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
               const Moments8bit& moments) {
  CheckMaster(exec, p, g);
  for (const Tensor* t : {&moments.m, &moments.v}) {
    LH_CHECK(t->dtype == DType::kU8 && t->contiguous() && t->rows * t->cols == p.rows * p.cols);
  }
  const int64_t blocks = (p.rows * p.cols + kMomentBlock - 1) / kMomentBlock;
  for (const Tensor* t : {&moments.m_scale, &moments.v_scale}) {
    LH_CHECK(t->dtype == DType::kF32 && t->contiguous() && t->rows * t->cols == blocks && p.dtype == DType::kF32);
  }
  Body(exec.ops().adam_w_8bit)(exec, config, state, p, g, moments);
}

void Nf4Quantize(const Exec& exec, const Tensor& w, const Nf4Weight& to) {
  CheckNf4(to);
  LH_CHECK(to.absmax != nullptr && w.rows == to.out && w.cols == to.in && w.contiguous());
  LH_CHECK(w.dtype == DType::kF32 || w.dtype == DType::kBF16 || w.dtype == DType::kF16);
  Body(exec.ops().nf4_quantize)(exec, w, to);
}

void Nf4NestAbsmax(const Exec& exec, const Nf4Weight& w, bool keep_offset) {
  CheckNf4(w);
  LH_CHECK(w.absmax != nullptr && w.absmax_codes != nullptr);
  Body(exec.ops().nf4_nest_absmax)(exec, w, keep_offset);
}

void Nf4Dequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y) {
  CheckNf4(w);
  LH_CHECK(y.dtype == DType::kF32 || y.dtype == DType::kBF16);
  LH_CHECK(first_row >= 0 && y.rows <= w.out - first_row && y.cols == w.in);
  Body(exec.ops().nf4_dequantize)(exec, w, first_row, y);
}

}  // namespace longhaul::kernels
