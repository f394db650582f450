// Cross entropy of one tile of rows against the whole vocabulary, its gradient in place.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/softmax.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int32_t kNotTrained = -100;

// What one row gives: its loss (0 where not trained) and whether its label has the largest logit.
struct RowResult {
  double loss;
  int64_t correct;
};

template <typename T>
RowResult LossRow(T* logits, int64_t vocab, int32_t label, double grad_scale) {
  if (label == kNotTrained) {
    if (grad_scale != 0) std::fill(logits, logits + vocab, T{0});
    return {0, 0};
  }
  const T label_logit = logits[label];
  const T largest = RowMax(logits, vocab);
  const bool with_gradient = grad_scale != 0;
  const double sum = with_gradient ? ExpSumInPlace(logits, vocab, largest) : ExpSum<T>(logits, vocab, largest);
  if (with_gradient) {
    ScaleRow(logits, vocab, static_cast<T>(grad_scale / sum));
    logits[label] -= static_cast<T>(grad_scale);
  }
  const double loss = std::log(sum) + (static_cast<double>(largest) - static_cast<double>(label_logit));
  return {loss, label_logit == largest ? 1 : 0};
}

}  // namespace

void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, double grad_scale, double* loss_sum,
              int64_t* correct) {
  const int64_t rows = logits.rows;
  auto* const results =
      static_cast<RowResult*>(exec.cpu().sums.Reserve(rows * static_cast<int64_t>(sizeof(RowResult))));
  WithFloatType(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, rows, logits.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) results[i] = LossRow(Row<T>(logits, i), logits.cols, labels[i], grad_scale);
    });
  });
  for (int64_t i = 0; i < rows; ++i) {
    *loss_sum += results[i].loss;
    if (correct != nullptr) *correct += results[i].correct;
  }
}

}  // namespace longhaul::kernels::cpu
