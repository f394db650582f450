// The CPU bodies behind ops.h: the same signatures, called by ops.cc after its checks.
#pragma once

#include "kernels/ops.h"

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

void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd);
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
void Add(const Exec& exec, const Tensor& x, const Tensor& y);
void Scale(const Exec& exec, double factor, const Tensor& x);
void Copy(const Exec& exec, const Tensor& x, const Tensor& y);
void Zero(const Exec& exec, const Tensor& x);
void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y);
void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y);
void AttentionForward(const Exec& exec, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& o, const Tensor& lse, void* scratch);
void AttentionBackward(const Exec& exec, const AttentionShape& shape, const Tensor& d_o, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, void* scratch);
void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, double grad_scale, double* loss_sum,
              int64_t* correct);
void AdamW(const Exec& exec, const AdamWParams& params, const Tensor& p, const Tensor& g, const Tensor& m,
           const Tensor& v);
double SumOfSquares(const Exec& exec, const Tensor& x);

}  // namespace longhaul::kernels::cpu
