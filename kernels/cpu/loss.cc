// Cross entropy of one tile of rows against the whole vocabulary, its gradient in place.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/check.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/softmax.h"

namespace longhaul::kernels::cpu {
namespace {

// What one row gives: its loss and LSE (0 where not trained) and whether its label has the largest logit.
struct RowResult {
  double loss;
  double lse;
  int64_t correct;
};

void CheckLabels(const int32_t* labels, int64_t rows, int64_t vocab) {
  for (int64_t i = 0; i < rows; ++i) {
    LH_CHECK(labels[i] == kNotTrained || (labels[i] >= 0 && labels[i] < vocab), std::to_string(labels[i]));
  }
}

RowResult ResultOfRow(double largest, double sum, double label_logit) {
  return {std::log(sum) + (largest - label_logit), largest + std::log(sum), label_logit == largest ? 1 : 0};
}

void AddInOrder(const RowResult* results, int64_t rows, LossTotals* totals) {
  for (int64_t i = 0; i < rows; ++i) {
    totals->nats += results[i].loss;
    totals->correct += results[i].correct;
  }
}

// grad_scale 0: no gradient is asked for.
template <typename T>
RowResult LossRow(T* logits, int64_t vocab, int32_t label, double grad_scale) {
  if (label == kNotTrained) {
    if (grad_scale != 0) std::fill(logits, logits + vocab, T{0});
    return {0, 0, 0};
  }
  const T label_logit = logits[label];
  const T largest = RowMax(logits, vocab);
  const bool with_gradient = grad_scale != 0;
  const double sum = with_gradient ? ExpSumInPlace(logits, vocab, largest) : ExpSum<T>(logits, vocab, largest);
  if (with_gradient) {
    ScaleRow(logits, vocab, static_cast<T>(grad_scale / sum));
    logits[label] -= static_cast<T>(grad_scale);
  }
  return ResultOfRow(static_cast<double>(largest), sum, static_cast<double>(label_logit));
}

RowResult* ReserveResults(const Exec& exec, int64_t rows) {
  return static_cast<RowResult*>(exec.cpu().sums.Reserve(rows * static_cast<int64_t>(sizeof(RowResult))));
}

}  // namespace

void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, const double* grad_scale,
              const Tensor& lse, LossTotals* totals) {
  const int64_t rows = logits.rows;
  CheckLabels(labels, rows, logits.cols);
  const double scale = grad_scale == nullptr ? 0 : *grad_scale;
  RowResult* const results = ReserveResults(exec, rows);
  WithFloatType(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, rows, logits.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        results[i] = LossRow(Row<T>(logits, i), logits.cols, labels[i], scale);
        if (lse.data != nullptr) *Row<T>(lse, i) = static_cast<T>(results[i].lse);
      }
    });
  });
  AddInOrder(results, rows, totals);
}

void BeginLoss(const Exec&, const LossRows& rows) {
  WithFloatType(rows.largest.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < rows.largest.rows; ++i) {
      rows.largest.as<T>()[i] = -std::numeric_limits<T>::infinity();
      rows.sum.as<T>()[i] = 0;
      rows.label_logit.as<T>()[i] = std::numeric_limits<T>::quiet_NaN();
    }
  });
}

void UpdateLoss(const Exec& exec, const Tensor& logits, int64_t first_col, const int32_t* labels, const LossRows& rows,
                const Tensor& weights, const Tensor& sums) {
  WithFloatType(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, logits.rows, logits.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* const weight = weights.data != nullptr ? Row<T>(weights, i) : nullptr;
        if (labels[i] == kNotTrained) {
          if (weight != nullptr) std::fill(weight, weight + logits.cols, T{0});
          continue;
        }
        const T* const row = Row<T>(logits, i);
        T& largest = rows.largest.as<T>()[i];
        T& sum = rows.sum.as<T>()[i];
        // Finite, so that a column of -infinity has no weight where all so far are such.
        const T now = std::max({largest, RowMax(row, logits.cols), std::numeric_limits<T>::lowest()});
        // Before the first tile the sum is 0, and -infinity minus itself would be NaN.
        const T kept = sum == 0 ? T{0} : std::exp(largest - now);
        const int64_t col = labels[i] - first_col;
        const bool has_label = col >= 0 && col < logits.cols;
        if (has_label) rows.label_logit.as<T>()[i] = row[col];
        if (weight != nullptr) {
          if (weight != row) std::copy(row, row + logits.cols, weight);
          sum = sum * kept + static_cast<T>(ExpSumInPlace(weight, logits.cols, now));
          if (has_label) weight[col] = 0;
        } else {
          sum = sum * kept + static_cast<T>(ExpSum(row, logits.cols, now));
        }
        largest = now;
        if (sums.data != nullptr) ScaleRow(Row<T>(sums, i), sums.cols, kept);
      }
    });
  });
}

void FinishLoss(const Exec& exec, const LossRows& rows, const int32_t* labels, const Tensor& lse, LossTotals* totals) {
  const int64_t count = rows.largest.rows;
  RowResult* const results = ReserveResults(exec, count);
  WithFloatType(lse.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < count; ++i) {
      const auto value = [i](const Tensor& t) { return static_cast<double>(t.as<T>()[i]); };
      results[i] = labels[i] == kNotTrained
                       ? RowResult{0, 0, 0}
                       : ResultOfRow(value(rows.largest), value(rows.sum), value(rows.label_logit));
      *Row<T>(lse, i) = static_cast<T>(results[i].lse);
    }
  });
  AddInOrder(results, count, totals);
}

}  // namespace longhaul::kernels::cpu
