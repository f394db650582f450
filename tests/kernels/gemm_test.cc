#include <omp.h>

#include <tuple>

#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

struct Case {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  double alpha, beta;
  int64_t gap;
};

double At(const Buffer& x, bool transposed, int64_t i, int64_t j) { return transposed ? x(j, i) : x(i, j); }

void CheckGemm(const Exec& exec, DType dtype, const Case& c) {
  const Buffer a = Buffer::Random(dtype, c.transpose_a ? c.k : c.m, c.transpose_a ? c.m : c.k, 1, c.gap);
  const Buffer b = Buffer::Random(dtype, c.transpose_b ? c.n : c.k, c.transpose_b ? c.k : c.n, 2, c.gap);
  const Buffer before = Buffer::Random(dtype, c.m, c.n, 3, c.gap);
  Buffer out = c.beta == 0 ? Buffer(dtype, c.m, c.n, c.gap) : before;  // beta 0 must not read the poison
  Gemm(exec, c.transpose_a, c.transpose_b, c.alpha, a.view(), b.view(), c.beta, out.view());
  const auto sum = [&](int64_t i, int64_t j, bool absolute) {
    double total = 0;
    for (int64_t k = 0; k < c.k; ++k) {
      const double product = At(a, c.transpose_a, i, k) * At(b, c.transpose_b, k, j);
      total += absolute ? std::abs(product) : product;
    }
    return total;
  };
  ExpectNear(
      out, [&](int64_t i, int64_t j) { return c.alpha * sum(i, j, false) + (c.beta == 0 ? 0 : c.beta * before(i, j)); },
      // k + 2 roundings, each at most epsilon of the sum of magnitudes (Higham, Accuracy and Stability, section 3.1).
      [&](int64_t i, int64_t j) {
        return static_cast<double>(c.k + 2) * Epsilon(dtype) *
               (std::abs(c.alpha) * sum(i, j, true) + std::abs(c.beta * before(i, j)));
      },
      "gemm " + std::to_string(c.m) + "x" + std::to_string(c.n) + "x" + std::to_string(c.k));
}

class GemmTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, GemmTest, testing::ValuesIn(TestedTypes()), TypeName);

TEST_P(GemmTest, EqualsTheDefinitionForEveryTransposeAndEdgeShape) {
  for (const int threads : {1, 2}) {
    const auto exec = MakeExec(threads);
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
                 {1, 1, 1}, {1, 9, 5}, {7, 5, 3}, {23, 15, 17}, {97, 33, 49}, {130, 200, 65}, {16, 193, 300}}) {
          CheckGemm(*exec, GetParam(), {m, n, k, transpose_a, transpose_b, 1, 0, 0});
          CheckGemm(*exec, GetParam(), {m, n, k, transpose_a, transpose_b, -0.5, 1, 3});
        }
      }
    }
  }
}

TEST_P(GemmTest, HasTheSameBitsForAnyThreadCount) {
  for (const bool transpose_a : {false, true}) {
    ExpectSameBits([&](const Exec& exec) {
      const Buffer a = Buffer::Random(GetParam(), transpose_a ? 120 : 211, transpose_a ? 211 : 120, 1);
      const Buffer b = Buffer::Random(GetParam(), 120, 205, 2);
      Buffer c(GetParam(), 211, 205);
      Gemm(exec, transpose_a, false, 1, a.view(), b.view(), 0, c.view());
      return std::vector<Buffer>{c};
    });
  }
}

TEST_P(GemmTest, HasTheSameBitsHoweverTheRowsAreCut) {
  constexpr int64_t kRows = 300;
  const auto exec = MakeExec(2);
  for (const bool transpose_b : {false, true}) {
    for (const int64_t n : {16, 97, 200}) {
      const int64_t k = 576;
      const Buffer a = Buffer::Random(GetParam(), kRows, k, 1);
      const Buffer b = Buffer::Random(GetParam(), transpose_b ? n : k, transpose_b ? k : n, 2);
      Buffer whole = Buffer::Random(GetParam(), kRows, n, 3);
      const Buffer before = whole;
      Gemm(*exec, false, transpose_b, 0.25, a.view(), b.view(), 1, whole.view());
      for (const int64_t cut : {1, 2, 5, 6, 7, 23, 24, 25, 31, 64, 95, 96, 97, 128, 150, 171, 299}) {
        Buffer parts = before;
        Gemm(*exec, false, transpose_b, 0.25, a.view().Rows(0, cut), b.view(), 1, parts.view().Rows(0, cut));
        Gemm(*exec, false, transpose_b, 0.25, a.view().Rows(cut, kRows), b.view(), 1, parts.view().Rows(cut, kRows));
        EXPECT_TRUE(parts.bytes() == whole.bytes()) << "n " << n << ", cut at " << cut;
      }
    }
  }
}

TEST_P(GemmTest, IsTheSameFromInsideAParallelRegion) {
  const auto exec = MakeExec(2);
  const Buffer a = Buffer::Random(GetParam(), 150, 70, 1);
  const Buffer b = Buffer::Random(GetParam(), 90, 70, 2);
  Buffer outside(GetParam(), 150, 90);
  Gemm(*exec, false, true, 1, a.view(), b.view(), 0, outside.view());
  std::vector<Buffer> inside(2, Buffer(GetParam(), 150, 90));
#pragma omp parallel num_threads(2)
  Gemm(*exec, false, true, 1, a.view(), b.view(), 0, inside[static_cast<size_t>(omp_get_thread_num())].view());
  EXPECT_TRUE(outside.bytes() == inside[0].bytes());
  EXPECT_TRUE(outside.bytes() == inside[1].bytes());
}

TEST(GemmDeathTest, MismatchedShapesAreABug) {
  const auto exec = MakeExec(1);
  const Buffer a(DType::kF32, 3, 4), b(DType::kF32, 5, 6), c(DType::kF32, 3, 6);
  EXPECT_DEATH(Gemm(*exec, false, false, 1, a.view(), b.view(), 0, c.view()), "transpose_a");
}

}  // namespace
}  // namespace longhaul::kernels
