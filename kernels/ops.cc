// Checks, then the backend's body. A failed check is a bug of the engine, not of a user.
#include "kernels/ops.h"

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/packed_gemm.h"

namespace longhaul::kernels {
namespace {

bool IsFloat(const Tensor& x) { return x.dtype == DType::kF32 || x.dtype == DType::kF64; }

bool SameType(const Tensor& a, const Tensor& b) { return a.dtype == b.dtype; }

bool SameShape(const Tensor& a, const Tensor& b) { return a.rows == b.rows && a.cols == b.cols && SameType(a, b); }

// An op that has only a CPU body.
void RequireCpu(const Exec& exec) { LH_CHECK(exec.backend() == Backend::kCpu, "no body for this backend"); }

void CheckAttention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                    const Tensor& lse) {
  LH_CHECK(IsFloat(q) && SameType(q, k) && SameType(q, v) && SameType(q, o) && SameType(q, lse));
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

}  // namespace

void Gemm(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
          double beta, const Tensor& c) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(a) && SameType(a, b) && SameType(a, c));
  LH_CHECK((transpose_a ? a.cols : a.rows) == c.rows && (transpose_b ? b.rows : b.cols) == c.cols);
  LH_CHECK((transpose_a ? a.rows : a.cols) == (transpose_b ? b.cols : b.rows));
  LH_CHECK((transpose_a ? a.rows : a.cols) > 0);
  (c.dtype == DType::kF64 ? cpu::GemmF64 : cpu::Gemm)(exec, transpose_a, transpose_b, alpha, a, b, beta, c);
}

void FrozenForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, double beta, const Tensor& y,
                   void* scratch) {
  RequireCpu(exec);
  LH_CHECK(x.rows == y.rows && x.cols == w.in && y.cols == w.out && SameType(x, y) && (beta == 0 || beta == 1));
  if (w.packed) {
    LH_CHECK(x.dtype == DType::kF32);
    cpu::PackedGemm(exec, x, w, /*backward=*/false, beta, y, scratch);
    return;
  }
  LH_CHECK(x.dtype == w.dtype);
  Gemm(exec, false, true, 1, x, MakeTensor(w.forward, w.dtype, w.out, w.in), beta, y);
}

void FrozenBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, double beta, const Tensor& dx,
                    void* scratch) {
  RequireCpu(exec);
  LH_CHECK(dy.rows == dx.rows && dy.cols == w.out && dx.cols == w.in && SameType(dy, dx) && (beta == 0 || beta == 1));
  if (w.packed) {
    LH_CHECK(dy.dtype == DType::kF32);
    cpu::PackedGemm(exec, dy, w, /*backward=*/true, beta, dx, scratch);
    return;
  }
  LH_CHECK(dy.dtype == w.dtype);
  Gemm(exec, false, false, 1, dy, MakeTensor(w.backward, w.dtype, w.out, w.in), beta, dx);
}

void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameShape(x, y) && SameType(x, w) && w.cols == x.cols);
  LH_CHECK(rstd.data == nullptr || (SameType(x, rstd) && rstd.rows == x.rows));
  cpu::RmsNorm(exec, x, w, eps, y, rstd);
}

void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameShape(x, dy) && SameShape(x, dx) && SameType(x, w) && w.cols == x.cols);
  LH_CHECK(SameType(x, rstd) && rstd.rows == x.rows);
  cpu::RmsNormBackward(exec, dy, x, w, rstd, accumulate, dx);
}

void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameShape(x, y) && SameType(x, w) && heads > 0 && x.cols == heads * w.cols);
  LH_CHECK(rstd.data == nullptr || (SameType(x, rstd) && rstd.rows == x.rows && rstd.cols == heads));
  cpu::HeadRmsNorm(exec, x, w, heads, eps, y, rstd);
}

void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameShape(x, dy) && SameShape(x, dx) && SameType(x, w) && heads > 0);
  LH_CHECK(x.cols == heads * w.cols && SameType(x, rstd) && rstd.rows == x.rows && rstd.cols == heads);
  cpu::HeadRmsNormBackward(exec, dy, x, w, heads, rstd, dx);
}

void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameType(x, cos) && SameShape(cos, sin) && heads > 0 && x.cols == heads * 2 * cos.cols);
  for (int64_t i = 0; i < x.rows; ++i) LH_CHECK(positions[i] >= 0 && positions[i] < cos.rows);
  cpu::Rope(exec, x, heads, cos, sin, positions, inverse);
}

void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(gate) && SameShape(gate, up) && SameShape(gate, y));
  cpu::SwiGlu(exec, gate, up, y);
}

void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(gate) && SameShape(gate, dy) && SameShape(gate, up) && SameShape(gate, dgate));
  LH_CHECK(SameShape(gate, dup) && (y.data == nullptr || SameShape(gate, y)));
  cpu::SwiGluBackward(exec, dy, gate, up, dgate, dup, y);
}

void Add(const Exec& exec, const Tensor& x, const Tensor& y) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameShape(x, y));
  cpu::Add(exec, x, y);
}

void Scale(const Exec& exec, double factor, const Tensor& x) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x));
  cpu::Scale(exec, factor, x);
}

void Copy(const Exec& exec, const Tensor& x, const Tensor& y) {
  RequireCpu(exec);
  LH_CHECK(x.rows == y.rows && x.cols == y.cols);
  cpu::Copy(exec, x, y);
}

void Zero(const Exec& exec, const Tensor& x) {
  RequireCpu(exec);
  cpu::Zero(exec, x);
}

void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y) {
  RequireCpu(exec);
  LH_CHECK(table.cols == y.cols);
  for (int64_t i = 0; i < y.rows; ++i) LH_CHECK(ids[i] >= 0 && ids[i] < table.rows, std::to_string(ids[i]));
  cpu::GatherRows(exec, table, ids, y);
}

void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && SameShape(x, y) && p >= 0 && p < 1);
  cpu::Dropout(exec, x, key, first_row, p, y);
}

void AttentionForward(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& o, const Tensor& lse, void* scratch) {
  RequireCpu(exec);
  CheckAttention(shape, q, k, v, o, lse);
  cpu::AttentionForward(exec, shape, q, k, v, o, lse, scratch);
}

void AttentionBackward(const Exec& exec, const AttentionShape& shape, const Tensor& d_o, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, void* scratch) {
  RequireCpu(exec);
  CheckAttention(shape, q, k, v, o, lse);
  LH_CHECK(SameShape(q, d_o) && SameShape(q, dq) && SameShape(k, dk) && SameShape(v, dv));
  cpu::AttentionBackward(exec, shape, d_o, q, k, v, o, lse, dq, dk, dv, scratch);
}

void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, double grad_scale, double* loss_sum,
              int64_t* correct) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(logits) && logits.cols > 0);
  for (int64_t i = 0; i < logits.rows; ++i) {
    LH_CHECK(labels[i] == -100 || (labels[i] >= 0 && labels[i] < logits.cols), std::to_string(labels[i]));
  }
  cpu::LossTile(exec, logits, labels, grad_scale, loss_sum, correct);
}

void AdamW(const Exec& exec, const AdamWParams& params, const Tensor& p, const Tensor& g, const Tensor& m,
           const Tensor& v) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(p) && SameShape(p, g) && SameShape(p, m) && SameShape(p, v) && params.step >= 1);
  LH_CHECK(p.contiguous() && g.contiguous() && m.contiguous() && v.contiguous());
  cpu::AdamW(exec, params, p, g, m, v);
}

double SumOfSquares(const Exec& exec, const Tensor& x) {
  RequireCpu(exec);
  LH_CHECK(IsFloat(x) && x.contiguous());
  return cpu::SumOfSquares(exec, x);
}

}  // namespace longhaul::kernels
