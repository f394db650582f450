// The CPU bodies behind ops.h: the same signatures, called through the op table after the checks of ops.cc.
#pragma once

#include "kernels/op_table.h"

namespace longhaul::kernels::cpu {

void Gemm(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
          double beta, const Tensor& c);
void GemmF64(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
             double beta, const Tensor& c);
// The same product on the calling thread alone, as one call of the library. For regions that are already parallel over
// documents and heads.
void SerialGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                int64_t a_stride, const float* b, int64_t b_stride, float beta, float* c, int64_t c_stride);
void SerialGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                int64_t a_stride, const double* b, int64_t b_stride, double beta, double* c, int64_t c_stride);

// The bodies of ops.h.
void FrozenForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, double beta, const Tensor& y,
                   void* scratch);
void FrozenBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, double beta, const Tensor& dx,
                    void* scratch);
void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd);
void AddRmsNorm(const Exec& exec, const Tensor& delta, const Tensor& w, double eps, const Tensor& x, const Tensor& y,
                const Tensor& rstd);
void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx);
void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd);
void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx);
void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse);
void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y);
void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y);
void GeGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y);
void GeGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                   const Tensor& dup, const Tensor& y);
void Add(const Exec& exec, const Tensor& x, const Tensor& y);
void Scale(const Exec& exec, double factor, const Tensor& x);
void CopyScaled(const Exec& exec, double factor, const Tensor& x, const Tensor& y);
void Zero(const Exec& exec, const Tensor& x);
void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y);
void ScatterRows(const Exec& exec, const Tensor& x, const int32_t* ids, const Tensor& y);
void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y);
void CountNonFinite(const Exec& exec, const Tensor& x, int64_t* count);
void AttentionForward(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& o, const Tensor& lse, void* scratch);
void AttentionBackward(const Exec& exec, const AttentionShape& shape, const Tensor& d_o, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, void* scratch);
void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, const double* grad_scale,
              const Tensor& lse, LossTotals* totals);
void BeginLoss(const Exec& exec, const LossRows& rows);
void UpdateLoss(const Exec& exec, const Tensor& logits, int64_t first_col, const int32_t* labels, const LossRows& rows);
void FinishLoss(const Exec& exec, const LossRows& rows, const int32_t* labels, const Tensor& lse, LossTotals* totals);
void LossGradient(const Exec& exec, const Tensor& logits, int64_t first_col, const int32_t* labels, const Tensor& lse,
                  const double* grad_scale);
void SumOfSquares(const Exec& exec, const Tensor& x, double* sum);
void PrepareUpdate(const Exec& exec, const AdamWConfig& config, const double* sum_of_squares, const double* loss,
                   UpdateState* state);
void AdamW(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
           const Tensor& m, const Tensor& v);
void AdamW8bit(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
               const Moments8bit& moments);
void Nf4Quantize(const Exec& exec, const Tensor& w, const Nf4Weight& to);
void Nf4NestAbsmax(const Exec& exec, const Nf4Weight& w, bool keep_offset);
void Nf4Dequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y);

// All of them.
const OpTable& Ops();

}  // namespace longhaul::kernels::cpu
