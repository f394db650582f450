#include "tests/kernels/cuda/sdpa_case.h"

namespace longhaul::kernels::cuda {

// p is rounded to bf16 before it meets v, and o once at the end: 2^-8 each of the sum of p |v|. The exponential of the
// library (2^x on the special function unit) and the order of sums add less than 2^-10.
void SdpaCase::CheckForwardRow(const std::vector<float>& stats, int64_t b, int64_t head, int64_t row) {
  const SequenceRows& s = sequences_[static_cast<size_t>(b)];
  const int64_t kv_head = head / (shape_.heads / shape_.kv_heads), dim = shape_.head_dim;
  std::vector<double> scores;
  std::vector<int64_t> keys;
  double largest = -INFINITY;
  for (int64_t key = 0; key < s.kv_length; ++key) {
    if (!Visible(s, row, key)) continue;
    keys.push_back(key);
    scores.push_back(shape_.scale * Dot(q_, s.q_row + row, head, k_, s.kv_row + key, kv_head));
    largest = std::max(largest, scores.back());
  }
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - largest);
  const double lse = largest + std::log(sum);
  ASSERT_NEAR(stats[static_cast<size_t>(StatsAt(b, s, head, row))], lse, 0x1p-14 * (1 + std::abs(lse)))
      << plan_->description() << ", sequence " << b << " head " << head << " row " << row;
  for (int64_t i = 0; i < dim; ++i) {
    double want = 0, magnitude = 0;
    for (size_t j = 0; j < keys.size(); ++j) {
      const double term = scores[j] / sum * v_(s.kv_row + keys[j], kv_head * dim + i);
      want += term;
      magnitude += std::abs(term);
    }
    const double got = o_(s.q_row + row, head * dim + i);
    ASSERT_TRUE(std::abs(got - want) <= magnitude * (2 * 0x1p-8 + 0x1p-10))
        << plan_->description() << ", o of sequence " << b << " head " << head << " row " << row << " column " << i
        << ": " << got << ", not " << want;
  }
}

void SdpaCase::CheckForward() {
  EXPECT_TRUE(o_.Download()) << plan_->description() << ": o was written between its rows";
  const std::vector<float> stats = Stats();
  for (int64_t b = 0; b < shape_.batch; ++b) {
    for (int64_t head = 0; head < shape_.heads; ++head) {
      for (int64_t row = 0; row < sequences_[static_cast<size_t>(b)].q_length; ++row) {
        CheckForwardRow(stats, b, head, row);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

void SdpaCase::CheckMatrix(const BF16Matrix& matrix, const std::vector<double>& want,
                           const std::vector<double>& tolerance, bool keys, const std::string& what) const {
  for (int64_t b = 0; b < shape_.batch; ++b) {
    const SequenceRows& s = sequences_[static_cast<size_t>(b)];
    const int64_t first = keys ? s.kv_row : s.q_row, length = keys ? s.kv_length : s.q_length;
    for (int64_t row = first; row < first + length; ++row) {
      for (int64_t i = 0; i < matrix.cols(); ++i) {
        const auto at = static_cast<size_t>(row * matrix.cols() + i);
        ASSERT_TRUE(std::abs(matrix(row, i) - want[at]) <= tolerance[at])
            << plan_->description() << ", " << what << " of sequence " << b << " row " << row - first << " column " << i
            << ": " << matrix(row, i) << ", not " << want[at] << " within " << tolerance[at];
      }
    }
  }
}

// From o and the statistics of the device, as the kernel reads them. p and ds are rounded to bf16 before they meet dO,
// q and k: 2^-8 of every term; a query head's dk and dv once more before the group is summed, the result at the end. ds
// is p times a difference of f32 sums: 2^-17 of their magnitudes.
void SdpaCase::CheckBackward() {
  EXPECT_TRUE(dq_.Download() && dk_.Download() && dv_.Download()) << plan_->description() << ": gaps were written";
  o_.Download();
  const std::vector<float> stats = Stats();
  const int64_t dim = shape_.head_dim;
  const auto zeros = [](const BF16Matrix& m) { return std::vector<double>(static_cast<size_t>(m.rows() * m.cols())); };
  std::vector<double> dq = zeros(dq_), dk = zeros(dk_), dv = zeros(dv_), dq_near = dq, dk_near = dk, dv_near = dv;
  for (int64_t b = 0; b < shape_.batch; ++b) {
    const SequenceRows& s = sequences_[static_cast<size_t>(b)];
    for (int64_t head = 0; head < shape_.heads; ++head) {
      const int64_t kv_head = head / (shape_.heads / shape_.kv_heads);
      for (int64_t row = 0; row < s.q_length; ++row) {
        const int64_t q_row = s.q_row + row;
        const double lse = stats[static_cast<size_t>(StatsAt(b, s, head, row))];
        const double delta = Dot(d_o_, q_row, head, o_, q_row, head);
        const double delta_magnitude = AbsDot(d_o_, q_row, head, o_, q_row, head);
        for (int64_t key = 0; key < s.kv_length; ++key) {
          if (!Visible(s, row, key)) continue;
          const int64_t kv_row = s.kv_row + key;
          const double p = std::exp(shape_.scale * Dot(q_, q_row, head, k_, kv_row, kv_head) - lse);
          const double ds = shape_.scale * p * (Dot(d_o_, q_row, head, v_, kv_row, kv_head) - delta);
          const double ds_near =
              std::abs(ds) * 3 * 0x1p-8 +
              shape_.scale * p * 0x1p-17 * (AbsDot(d_o_, q_row, head, v_, kv_row, kv_head) + delta_magnitude);
          for (int64_t i = 0; i < dim; ++i) {
            const auto q_at = static_cast<size_t>(q_row * dq_.cols() + head * dim + i);
            const auto k_at = static_cast<size_t>(kv_row * dk_.cols() + kv_head * dim + i);
            dq[q_at] += ds * k_(kv_row, kv_head * dim + i);
            dq_near[q_at] += ds_near * std::abs(k_(kv_row, kv_head * dim + i));
            dk[k_at] += ds * q_(q_row, head * dim + i);
            dk_near[k_at] += ds_near * std::abs(q_(q_row, head * dim + i));
            dv[k_at] += p * d_o_(q_row, head * dim + i);
            dv_near[k_at] += p * 3 * 0x1p-8 * std::abs(d_o_(q_row, head * dim + i));
          }
        }
      }
    }
  }
  CheckMatrix(dq_, dq, dq_near, false, "dq");
  CheckMatrix(dk_, dk, dk_near, true, "dk");
  CheckMatrix(dv_, dv, dv_near, true, "dv");
}

}  // namespace longhaul::kernels::cuda
