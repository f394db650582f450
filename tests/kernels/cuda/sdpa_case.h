// An attention call for tests: random operands on host and device, and the formulas in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/sdpa.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace longhaul::kernels::cuda {

// Rows of one sequence in the matrices.
struct SequenceRows {
  int64_t q_row, q_length, kv_row, kv_length;
};

class SdpaCase {
 public:
  // lengths: of every sequence (documents beyond them are empty). kv_lengths: where queries_last, else the same.
  SdpaCase(SdpaShape shape, std::vector<int64_t> lengths, std::vector<int64_t> kv_lengths = {})
      : shape_(shape),
        q_(BF16Matrix::Random(shape.rows_q(), Cols(shape.heads), shape.q_stride, 1)),
        k_(BF16Matrix::Random(shape.rows_kv(), Cols(shape.kv_heads), shape.k_stride, 2)),
        v_(BF16Matrix::Random(shape.rows_kv(), Cols(shape.kv_heads), shape.v_stride, 3)),
        d_o_(BF16Matrix::Random(shape.rows_q(), Cols(shape.heads), shape.d_o_stride, 4)),
        o_(shape.rows_q(), Cols(shape.heads), shape.o_stride),
        dq_(shape.rows_q(), Cols(shape.heads), shape.dq_stride),
        dk_(shape.rows_kv(), Cols(shape.kv_heads), shape.dk_stride),
        dv_(shape.rows_kv(), Cols(shape.kv_heads), shape.dv_stride),
        rows_q_((shape.batch + 1) * 8),
        rows_kv_((shape.batch + 1) * 8),
        lengths_q_(shape.batch * 4),
        lengths_kv_(shape.batch * 4),
        index_(SdpaIndexBytes(shape)) {
    if (kv_lengths.empty()) kv_lengths = lengths;
    Place(lengths, kv_lengths);
  }

  // Makes the plan; the buffers for what it asks.
  void Prepare(std::unique_ptr<SdpaPlan> plan, cudaStream_t stream) {
    plan_ = std::move(plan);
    const SdpaDevice facts{.compute_capability = plan_->stats_are_rows() ? 90 : 80};
    stats_ = std::make_unique<DeviceBytes>(SdpaStatsBytes(shape_, facts));
    workspace_ =
        std::make_unique<DeviceBytes>(std::max(plan_->forward_workspace_bytes(), plan_->backward_workspace_bytes()));
    if (shape_.layout == SdpaLayout::kRagged) {
      plan_->PrepareIndex(stream, rows_q_.as<int64_t>(), rows_kv_.as<int64_t>(), index_.data());
    }
    CheckCuda(cudaStreamSynchronize(stream), "prepare");
  }
  // Other documents in the same buffers.
  void Repack(const std::vector<int64_t>& lengths, cudaStream_t stream) {
    Place(lengths, lengths);
    plan_->PrepareIndex(stream, rows_q_.as<int64_t>(), rows_kv_.as<int64_t>(), index_.data());
  }
  void Forward(cudaStream_t stream) {
    plan_->Forward(stream, buffers(), workspace_->data());
    CheckCuda(cudaStreamSynchronize(stream), "forward");
  }
  void Backward(cudaStream_t stream) {
    plan_->Backward(stream, buffers(), workspace_->data());
    CheckCuda(cudaStreamSynchronize(stream), "backward");
  }
  SdpaBuffers buffers() const {
    return {.q = q_.device(),
            .k = k_.device(),
            .v = v_.device(),
            .o = o_.device(),
            .stats = stats_->as<float>(),
            .d_o = d_o_.device(),
            .dq = dq_.device(),
            .dk = dk_.device(),
            .dv = dv_.device(),
            .lengths_q = lengths_q_.as<int32_t>(),
            .lengths_kv = lengths_kv_.as<int32_t>(),
            .index = index_.data()};
  }

  // Compare with the formulas. Backward's take o and the statistics as the device has them.
  void CheckForward();
  void CheckBackward();

  const SdpaPlan& plan() const { return *plan_; }
  DeviceBytes& workspace() { return *workspace_; }
  std::vector<std::vector<uint8_t>> GradientBytes() const { return {dq_.bytes(), dk_.bytes(), dv_.bytes()}; }
  BF16Matrix& q() { return q_; }
  BF16Matrix& dq() { return dq_; }

 private:
  int64_t Cols(int64_t heads) const { return heads * shape_.head_dim; }
  bool Visible(const SequenceRows& s, int64_t query, int64_t key) const {
    const int64_t at = query + s.kv_length - s.q_length;
    return key <= at && (shape_.window == 0 || key > at - shape_.window);
  }

  void Place(const std::vector<int64_t>& lengths, const std::vector<int64_t>& kv_lengths) {
    sequences_.clear();
    std::vector<int64_t> rows_q{0}, rows_kv{0};
    std::vector<int32_t> short_q, short_kv;
    for (int64_t b = 0; b < shape_.batch; ++b) {
      const bool given = b < static_cast<int64_t>(lengths.size());
      const int64_t q = given ? lengths[static_cast<size_t>(b)] : 0,
                    kv = given ? kv_lengths[static_cast<size_t>(b)] : 0;
      const bool ragged = shape_.layout == SdpaLayout::kRagged;
      sequences_.push_back(
          {ragged ? rows_q.back() : b * shape_.max_q, q, ragged ? rows_kv.back() : b * shape_.max_kv, kv});
      rows_q.push_back(rows_q.back() + q);
      rows_kv.push_back(rows_kv.back() + kv);
      short_q.push_back(static_cast<int32_t>(q));
      short_kv.push_back(static_cast<int32_t>(kv));
    }
    rows_q_.Upload(rows_q.data(), rows_q_.bytes());
    rows_kv_.Upload(rows_kv.data(), rows_kv_.bytes());
    lengths_q_.Upload(short_q.data(), lengths_q_.bytes());
    lengths_kv_.Upload(short_kv.data(), lengths_kv_.bytes());
  }

  double Dot(const BF16Matrix& a, int64_t a_row, int64_t a_head, const BF16Matrix& b, int64_t b_row,
             int64_t b_head) const {
    double sum = 0;
    for (int64_t i = 0; i < shape_.head_dim; ++i) {
      sum += a(a_row, a_head * shape_.head_dim + i) * b(b_row, b_head * shape_.head_dim + i);
    }
    return sum;
  }
  double AbsDot(const BF16Matrix& a, int64_t a_row, int64_t a_head, const BF16Matrix& b, int64_t b_row,
                int64_t b_head) const {
    double sum = 0;
    for (int64_t i = 0; i < shape_.head_dim; ++i) {
      sum += std::abs(a(a_row, a_head * shape_.head_dim + i) * b(b_row, b_head * shape_.head_dim + i));
    }
    return sum;
  }
  int64_t StatsAt(int64_t b, const SequenceRows& s, int64_t head, int64_t row) const {
    return plan_->stats_are_rows() ? (s.q_row + row) * shape_.heads + head
                                   : (b * shape_.heads + head) * shape_.max_q + row;
  }
  void CheckForwardRow(const std::vector<float>& stats, int64_t b, int64_t head, int64_t row);
  void CheckMatrix(const BF16Matrix& matrix, const std::vector<double>& want, const std::vector<double>& tolerance,
                   bool keys, const std::string& what) const;
  std::vector<float> Stats() const {
    const std::vector<uint8_t> bytes = stats_->Download();
    const auto* const first = reinterpret_cast<const float*>(bytes.data());
    return {first, first + bytes.size() / sizeof(float)};
  }

  SdpaShape shape_;
  BF16Matrix q_, k_, v_, d_o_, o_, dq_, dk_, dv_;
  DeviceBytes rows_q_, rows_kv_, lengths_q_, lengths_kv_, index_;
  std::unique_ptr<DeviceBytes> stats_, workspace_;
  std::unique_ptr<SdpaPlan> plan_;
  std::vector<SequenceRows> sequences_;
};

}  // namespace longhaul::kernels::cuda
