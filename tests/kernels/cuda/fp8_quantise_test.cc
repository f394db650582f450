#include "kernels/cuda/fp8_quantise.h"

#include <algorithm>
#include <limits>

#include "kernels/cuda/lt_gemm.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace longhaul::kernels::cuda {
namespace {

using E4M3Matrix = DeviceMatrix<__nv_fp8_e4m3>;

// Every element is the nearest E4M3 of x / scale: 2^-4 of it, or half of the smallest step, 2^-10; the division by way
// of the reciprocal may fall on the other side of a tie, by 2^-23.
void ExpectQuantised(const E4M3Matrix& q, const std::function<double(int64_t, int64_t)>& x,
                     const std::function<double(int64_t)>& scale) {
  for (int64_t i = 0; i < q.rows(); ++i) {
    double amax = 0;
    for (int64_t j = 0; j < q.cols(); ++j) amax = std::max(amax, std::abs(x(i, j)));
    ASSERT_NEAR(scale(i), amax == 0 ? 1 : amax / 448, amax * 0x1p-30) << "row " << i;
    for (int64_t j = 0; j < q.cols(); ++j) {
      const double want = x(i, j) / scale(i);
      ASSERT_NEAR(q(i, j), want, std::max(std::abs(want) * 0x1p-4, 0x1p-10) * (1 + 0x1p-20)) << i << ", " << j;
    }
  }
}

TEST(Fp8QuantiseTest, RowsWideAndNarrow) {
  Stream stream;
  for (const int64_t cols : {1, 16, 333, 576, 4096, 24576, 40960}) {
    const int64_t rows = 7;
    auto x = BF16Matrix::Random(rows, cols, cols + 8, static_cast<uint32_t>(cols), 5);
    for (int64_t j = 0; j < cols; ++j) x(3, j) = 0;
    x.Upload();
    E4M3Matrix q(rows, cols, cols + 16);
    F32Matrix scale(1, rows, rows);
    QuantiseRows(stream.get(), x.device(), x.stride(), rows, cols, q.device(), q.stride(), scale.device());
    stream.Synchronize();
    ASSERT_TRUE(q.Download() && scale.Download());
    ExpectQuantised(
        q, [&](int64_t i, int64_t j) { return x(i, j); }, [&](int64_t i) { return scale(0, i); });
  }
}

TEST(Fp8QuantiseTest, TransposeHasAScaleAColumn) {
  Stream stream;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{5, 3}, {64, 32}, {100, 77}}) {
    const auto x = BF16Matrix::Random(rows, cols, cols + 5, 9, 0.02);
    E4M3Matrix q(cols, rows, rows + 3);
    F32Matrix scale(1, cols, cols);
    QuantiseTransposed(stream.get(), x.device(), x.stride(), rows, cols, q.device(), q.stride(), scale.device());
    stream.Synchronize();
    ASSERT_TRUE(q.Download() && scale.Download());
    ExpectQuantised(
        q, [&](int64_t i, int64_t j) { return x(j, i); }, [&](int64_t i) { return scale(0, i); });
  }
}

TEST(Fp8QuantiseTest, ANotANumberShowsInEveryResultOfItsRow) {
  Stream stream;
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    auto x = BF16Matrix::Random(4, 64, 64, 1);
    x(2, 63) = bad;
    x.Upload();
    E4M3Matrix q(4, 64, 64), t(64, 4, 4);
    F32Matrix scale(1, 4, 4), t_scale(1, 64, 64);
    QuantiseRows(stream.get(), x.device(), 64, 4, 64, q.device(), 64, scale.device());
    QuantiseTransposed(stream.get(), x.device(), 64, 4, 64, t.device(), 4, t_scale.device());
    stream.Synchronize();
    ASSERT_TRUE(scale.Download() && t_scale.Download());
    for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(std::isnan(scale(0, i)), i == 2) << i;
    for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(t_scale(0, i)), i == 63) << i;
  }
}

// y = x W^T and dx = dy W of a linear in FP8, against the same in double: each operand is off by 2^-4 of an element at
// most, at random, so a sum of k products by far less than 2^-4 of the sum of their magnitudes.
TEST(Fp8QuantiseTest, AProductOfQuantisedOperandsIsNear) {
  auto gemm = LtGemm::Create(16 << 20);
  ASSERT_TRUE(gemm.ok()) << gemm.status().message();
  const auto mode = (*gemm)->BestFp8Scale();
  if (!mode.ok() || *mode != GemmScale::kRow) GTEST_SKIP() << "no FP8 product with a scale a row";
  Stream stream;
  constexpr int64_t kRows = 64, kOut = 96, kIn = 128;
  const auto x = BF16Matrix::Random(kRows, kIn, kIn, 1), w = BF16Matrix::Random(kOut, kIn, kIn, 2, 0.02);
  E4M3Matrix xq(kRows, kIn, kIn), wq(kOut, kIn, kIn);
  F32Matrix x_scale(1, kRows, kRows), w_scale(1, kOut, kOut);
  BF16Matrix y(kRows, kOut, kOut);
  QuantiseRows(stream.get(), x.device(), kIn, kRows, kIn, xq.device(), kIn, x_scale.device());
  QuantiseRows(stream.get(), w.device(), kIn, kOut, kIn, wq.device(), kIn, w_scale.device());
  const GemmShape shape{.transpose_b = true,
                        .input = GemmElement::kE4M3,
                        .scale = GemmScale::kRow,
                        .m = kRows,
                        .n = kOut,
                        .k = kIn,
                        .a_stride = kIn,
                        .b_stride = kIn,
                        .c_stride = kOut};
  const auto bytes = (*gemm)->Plan(shape);
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  DeviceBytes workspace(*bytes);
  (*gemm)->Run(stream.get(), shape, 1, {xq.device(), wq.device(), y.device(), x_scale.device(), w_scale.device()},
               {workspace.data(), *bytes});
  stream.Synchronize();
  y.Download();
  const auto sum = [&](int64_t i, int64_t j, bool magnitudes) {
    double total = 0;
    for (int64_t l = 0; l < kIn; ++l) total += magnitudes ? std::abs(x(i, l) * w(j, l)) : x(i, l) * w(j, l);
    return total;
  };
  ExpectNear(
      y, [&](int64_t i, int64_t j) { return sum(i, j, false); },
      [&](int64_t i, int64_t j) { return sum(i, j, true) * 0x1p-5; }, "y");
}

}  // namespace
}  // namespace longhaul::kernels::cuda
