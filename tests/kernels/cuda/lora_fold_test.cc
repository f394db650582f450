// The folds' products by a plain GEMM that reads exactly what a shape says, from buffers whose unused parts are NaN.
#include "kernels/shapes/lora_fold.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace longhaul::kernels::cuda {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

void Multiply(const GemmShape& s, double alpha, const double* a, const double* b, double* c) {
  ASSERT_TRUE(CheckGemmShape(s).ok()) << CheckGemmShape(s).message();
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < s.k; ++l) {
        sum += (s.transpose_a ? a[l * s.a_stride + i] : a[i * s.a_stride + l]) *
               (s.transpose_b ? b[j * s.b_stride + l] : b[l * s.b_stride + j]);
      }
      double& to = c[i * s.c_stride + j];
      to = alpha * sum + (s.accumulate ? to : 0);
    }
  }
}

// A linear with random W, A, B and inputs, everything else NaN.
class LoraFoldTest : public testing::Test {
 protected:
  static constexpr int64_t kOut = 24, kIn = 40, kRank = 16, kRows = 5;
  static constexpr double kS = 0.75;

  LoraFoldTest()
      : fold(MakeLoraFold(kOut, kIn, kRank)),
        weight(static_cast<size_t>((kOut + kRank) * fold.weight_stride), kNaN),
        x(static_cast<size_t>(kRows * fold.x_stride), kNaN),
        dy(static_cast<size_t>(kRows * fold.y_stride), kNaN) {
    Fill(weight.data(), kOut, kIn, fold.weight_stride);
    Fill(weight.data() + fold.sb_offset(), kOut, kRank, fold.weight_stride);
    Fill(weight.data() + fold.a_offset(), kRank, kIn, fold.weight_stride);
    Fill(x.data(), kRows, kIn, fold.x_stride);
    Fill(dy.data(), kRows, kOut, fold.y_stride);
  }

  void Fill(double* to, int64_t rows, int64_t cols, int64_t stride) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) to[i * stride + j] = normal(generator);
    }
  }
  double W(int64_t i, int64_t j) const { return weight[static_cast<size_t>(i * fold.weight_stride + j)]; }
  double SB(int64_t i, int64_t r) const { return W(i, kIn + r); }
  double A(int64_t r, int64_t j) const { return W(kOut + r, j); }
  double X(int64_t i, int64_t j) const { return x[static_cast<size_t>(i * fold.x_stride + j)]; }
  double DY(int64_t i, int64_t j) const { return dy[static_cast<size_t>(i * fold.y_stride + j)]; }
  // The linear's effective weight.
  double Whole(int64_t i, int64_t j) const {
    double sum = W(i, j);
    for (int64_t r = 0; r < kRank; ++r) sum += SB(i, r) * A(r, j);
    return sum;
  }
  double Y(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t l = 0; l < kIn; ++l) sum += X(i, l) * Whole(j, l);
    return sum;
  }
  double DX(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t l = 0; l < kOut; ++l) sum += DY(i, l) * Whole(l, j);
    return sum;
  }

  std::mt19937 generator{7};
  LoraFold fold;
  std::vector<double> weight, x, dy;
};

TEST_F(LoraFoldTest, ForwardKAugmentedAndSeparate) {
  Multiply(LoraDown(fold, kRows), 1, x.data(), weight.data() + fold.a_offset(), x.data() + fold.u_offset());
  std::vector<double> folded(static_cast<size_t>(kRows * fold.y_stride), kNaN), separate = folded;
  Multiply(LoraKForward(fold, kRows), 1, x.data(), weight.data(), folded.data());
  Multiply(LoraBaseForward(fold, kRows), 1, x.data(), weight.data(), separate.data());
  Multiply(LoraUpAdd(fold, kRows), 1, x.data() + fold.u_offset(), weight.data() + fold.sb_offset(), separate.data());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kOut; ++j) {
      const auto at = static_cast<size_t>(i * fold.y_stride + j);
      EXPECT_NEAR(folded[at], Y(i, j), 1e-11);
      EXPECT_NEAR(separate[at], Y(i, j), 1e-11);
    }
    EXPECT_TRUE(std::isnan(folded[static_cast<size_t>(i * fold.y_stride + kOut)]));
  }
}

TEST_F(LoraFoldTest, ForwardNAugmentedGivesBaseAndDownAtOnce) {
  std::vector<double> y(static_cast<size_t>(kRows * fold.y_stride), kNaN);
  Multiply(LoraNForward(fold, kRows), 1, x.data(), weight.data(), y.data());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kOut; ++j) {
      double sum = y[static_cast<size_t>(i * fold.y_stride + j)];
      for (int64_t r = 0; r < kRank; ++r) sum += SB(j, r) * y[static_cast<size_t>(i * fold.y_stride + kOut + r)];
      EXPECT_NEAR(sum, Y(i, j), 1e-11);
    }
  }
}

TEST_F(LoraFoldTest, BackwardKAugmentedAndSeparate) {
  Multiply(LoraBackwardDown(fold, kRows), 1, dy.data(), weight.data() + fold.sb_offset(), dy.data() + fold.v_offset());
  std::vector<double> folded(static_cast<size_t>(kRows * fold.dx_stride), kNaN), separate = folded;
  Multiply(LoraKBackward(fold, kRows), 1, dy.data(), weight.data(), folded.data());
  Multiply(LoraBaseBackward(fold, kRows), 1, dy.data(), weight.data(), separate.data());
  Multiply(LoraBackwardUpAdd(fold, kRows), 1, dy.data() + fold.v_offset(), weight.data() + fold.a_offset(),
           separate.data());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kIn; ++j) {
      EXPECT_NEAR(folded[static_cast<size_t>(i * fold.dx_stride + j)], DX(i, j), 1e-11);
      EXPECT_NEAR(separate[static_cast<size_t>(i * fold.dx_stride + j)], DX(i, j), 1e-11);
    }
  }
}

TEST_F(LoraFoldTest, GradientsAccumulateAndAreScaledOnce) {
  Multiply(LoraDown(fold, kRows), 1, x.data(), weight.data() + fold.a_offset(), x.data() + fold.u_offset());
  Multiply(LoraBackwardDown(fold, kRows), 1, dy.data(), weight.data() + fold.sb_offset(), dy.data() + fold.v_offset());
  std::vector<double> da(kRank * kIn, kNaN), db(kOut * kRank, 1);
  Multiply(LoraGradA(fold, kRows, /*accumulate=*/false), 1, dy.data() + fold.v_offset(), x.data(), da.data());
  Multiply(LoraGradB(fold, kRows, /*accumulate=*/true), kS, dy.data(), x.data() + fold.u_offset(), db.data());
  for (int64_t r = 0; r < kRank; ++r) {
    for (int64_t j = 0; j < kIn; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < kRows; ++i) sum += DY(i, kOut + r) * X(i, j);
      EXPECT_NEAR(da[static_cast<size_t>(r * kIn + j)], sum, 1e-11);
    }
    for (int64_t j = 0; j < kOut; ++j) {
      double sum = 1;
      for (int64_t i = 0; i < kRows; ++i) sum += kS * DY(i, j) * X(i, kIn + r);
      EXPECT_NEAR(db[static_cast<size_t>(j * kRank + r)], sum, 1e-11);
    }
  }
}

TEST_F(LoraFoldTest, RowsAreMultiplesOf128Bytes) {
  EXPECT_EQ(fold.weight_stride, 64);
  EXPECT_EQ(fold.y_stride, 64);
  EXPECT_EQ(MakeLoraFold(4096, 4096, 32).weight_stride, 4160);
  EXPECT_EQ(MakeLoraFold(4096, 4096, 32).weight_bytes(), 4128 * 4160 * 2);
}

}  // namespace
}  // namespace longhaul::kernels::cuda
