#include "kernels/shapes/lora_fold.h"

#include "base/check.h"

namespace longhaul::kernels::cuda {
namespace {

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// a [m, k] times b [n, k] transposed, the forward direction.
GemmShape Forward(int64_t m, int64_t n, int64_t k, int64_t a_stride, int64_t b_stride, int64_t c_stride) {
  return {
      .transpose_b = true, .m = m, .n = n, .k = k, .a_stride = a_stride, .b_stride = b_stride, .c_stride = c_stride};
}

// a [m, k] times b [k, n], the backward direction.
GemmShape Backward(int64_t m, int64_t n, int64_t k, int64_t a_stride, int64_t b_stride, int64_t c_stride) {
  return {.m = m, .n = n, .k = k, .a_stride = a_stride, .b_stride = b_stride, .c_stride = c_stride};
}

// a [k, m] transposed times b [k, n], summed over rows in f32.
GemmShape Gradient(int64_t m, int64_t n, int64_t rows, int64_t a_stride, int64_t b_stride, bool accumulate) {
  return {.transpose_a = true,
          .accumulate = accumulate,
          .output = GemmElement::kF32,
          .m = m,
          .n = n,
          .k = rows,
          .a_stride = a_stride,
          .b_stride = b_stride,
          .c_stride = n};
}

GemmShape Adding(GemmShape shape) {
  shape.accumulate = true;
  return shape;
}

}  // namespace

LoraFold MakeLoraFold(int64_t out, int64_t in, int64_t rank) {
  LH_CHECK(out > 0 && in > 0 && out % 8 == 0 && in % 8 == 0);
  LH_CHECK(rank >= 0 && rank % kLoraRankUnit == 0);
  return {.out = out,
          .in = in,
          .rank = rank,
          .weight_stride = RoundUp(in + rank, kLoraStrideUnit),
          .x_stride = RoundUp(in + rank, kLoraStrideUnit),
          .y_stride = RoundUp(out + rank, kLoraStrideUnit),
          .dx_stride = in};
}

GemmShape LoraDown(const LoraFold& f, int64_t rows) {
  return Forward(rows, f.rank, f.in, f.x_stride, f.weight_stride, f.x_stride);
}

GemmShape LoraKForward(const LoraFold& f, int64_t rows) {
  return Forward(rows, f.out, f.in + f.rank, f.x_stride, f.weight_stride, f.y_stride);
}

GemmShape LoraNForward(const LoraFold& f, int64_t rows) {
  return Forward(rows, f.out + f.rank, f.in, f.x_stride, f.weight_stride, f.y_stride);
}

GemmShape LoraBaseForward(const LoraFold& f, int64_t rows) {
  return Forward(rows, f.out, f.in, f.x_stride, f.weight_stride, f.y_stride);
}

GemmShape LoraUpAdd(const LoraFold& f, int64_t rows) {
  return Adding(Forward(rows, f.out, f.rank, f.x_stride, f.weight_stride, f.y_stride));
}

GemmShape LoraBackwardDown(const LoraFold& f, int64_t rows) {
  return Backward(rows, f.rank, f.out, f.y_stride, f.weight_stride, f.y_stride);
}

GemmShape LoraKBackward(const LoraFold& f, int64_t rows) {
  return Backward(rows, f.in, f.out + f.rank, f.y_stride, f.weight_stride, f.dx_stride);
}

GemmShape LoraBaseBackward(const LoraFold& f, int64_t rows) {
  return Backward(rows, f.in, f.out, f.y_stride, f.weight_stride, f.dx_stride);
}

GemmShape LoraBackwardUpAdd(const LoraFold& f, int64_t rows) {
  return Adding(Backward(rows, f.in, f.rank, f.y_stride, f.weight_stride, f.dx_stride));
}

GemmShape LoraGradA(const LoraFold& f, int64_t rows, bool accumulate) {
  return Gradient(f.rank, f.in, rows, f.y_stride, f.x_stride, accumulate);
}

GemmShape LoraGradB(const LoraFold& f, int64_t rows, bool accumulate) {
  return Gradient(f.out, f.rank, rows, f.y_stride, f.x_stride, accumulate);
}

}  // namespace longhaul::kernels::cuda
