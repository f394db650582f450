// The two passes over a row of scores that attention and the loss share. T is float or double.
#pragma once

#include <cstdint>

namespace longhaul::kernels::cpu {

// The largest of x[0..n); NaNs are passed over (ExpSum then meets them). -infinity where n is 0.
template <typename T>
T RowMax(const T* x, int64_t n);

// x[i] = e^(x[i] - shift); returns their sum, in double over chunks of 1,024. NaN in, NaN out.
template <typename T>
double ExpSumInPlace(T* x, int64_t n, T shift);
// The sum alone, the same bits.
template <typename T>
double ExpSum(const T* x, int64_t n, T shift);

// x *= factor.
template <typename T>
void ScaleRow(T* x, int64_t n, T factor);

}  // namespace longhaul::kernels::cpu
