#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

struct Tables {
  // In the statistics' type of `activations`.
  Tables(DType activations, int64_t positions, int64_t half)
      : cos(StatType(activations), positions, half), sin(StatType(activations), positions, half) {
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
        cos.Set(p, i, std::cos(angle));
        sin.Set(p, i, std::sin(angle));
      }
    }
  }
  Buffer cos, sin;
};

class RopeTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, RopeTest, testing::ValuesIn(TestedTypes()), TypeName);

TEST_P(RopeTest, RotatesPairsHalfAHeadApartAndBack) {
  const auto exec = MakeExec(2);
  struct Shape {
    int64_t rows, heads, half, gap;
  };
  // Heads of 2 to 128 elements; odd halves; more heads than a thread takes; whole vectors with and without a gap.
  for (const auto& [rows, heads, half, gap] : std::vector<Shape>{
           {1, 1, 1, 3}, {5, 2, 3, 3}, {7, 3, 8, 8}, {90, 4, 32, 3}, {3, 1, 17, 3}, {90, 9, 32, 0}, {33, 5, 64, 16}}) {
    const Tables tables(GetParam(), 200, half);
    TestVector<int32_t> positions;
    for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>((i * 37) % 200));  // not in order
    const Buffer before = Buffer::Random(GetParam(), rows, heads * 2 * half, 1, gap);
    Buffer x = before;
    Rope(*exec, x.view(), heads, tables.cos.view(), tables.sin.view(), positions.data(), false);
    const auto pair_size = [&, half = half](int64_t i, int64_t j) {
      const int64_t other = j % (2 * half) < half ? j + half : j - half;
      return std::abs(before(i, j)) + std::abs(before(i, other));
    };
    // Two products and a sum of the pair.
    const auto tolerance = [&](int64_t i, int64_t j) {
      return 3 * Epsilon(GetParam()) * pair_size(i, j) + Stored(GetParam(), pair_size(i, j));
    };
    ExpectNear(
        x,
        [&, half = half](int64_t i, int64_t j) {
          const int32_t p = positions[static_cast<size_t>(i)];
          const int64_t in_head = j % (2 * half);
          const double c = tables.cos(p, in_head % half), s = tables.sin(p, in_head % half);
          return in_head < half ? before(i, j) * c - before(i, j + half) * s
                                : before(i, j) * c + before(i, j - half) * s;
        },
        tolerance, "rotated");
    Rope(*exec, x.view(), heads, tables.cos.view(), tables.sin.view(), positions.data(), true);
    // There and back, and cos, sin themselves rounded: cos^2 + sin^2 is 1 within 4 roundings. Stored: the rotated pair,
    // then the result.
    ExpectNear(
        x, [&](int64_t i, int64_t j) { return before(i, j); },
        [&](int64_t i, int64_t j) {
          return 12 * Epsilon(GetParam()) * pair_size(i, j) + Stored(GetParam(), 3 * pair_size(i, j));
        },
        "back");
  }
}

TEST_P(RopeTest, PositionZeroChangesNothing) {
  const auto exec = MakeExec(1);
  const Tables tables(GetParam(), 1, 4);
  const Buffer before = Buffer::Random(GetParam(), 1, 16, 1);
  Buffer x = before;
  Shared<int32_t> position(0);
  Rope(*exec, x.view(), 2, tables.cos.view(), tables.sin.view(), position.get(), false);
  EXPECT_TRUE(x.bytes() == before.bytes());
}

TEST_P(RopeTest, BitsDependOnNeitherThreadsNorCuts) {
  const Tables tables(GetParam(), 300, 16);
  TestVector<int32_t> positions;
  for (int32_t i = 0; i < 300; ++i) positions.push_back(i);
  Buffer whole(GetParam(), 300, 96);
  ExpectSameBits([&](const Exec& exec) {
    Buffer x = Buffer::Random(GetParam(), 300, 96, 1);
    Rope(exec, x.view(), 3, tables.cos.view(), tables.sin.view(), positions.data(), false);
    whole = x;
    return std::vector<Buffer>{x};
  });
  const auto exec = MakeExec(2);
  Buffer parts = Buffer::Random(GetParam(), 300, 96, 1);
  Rope(*exec, parts.view().Rows(0, 128), 3, tables.cos.view(), tables.sin.view(), positions.data(), false);
  Rope(*exec, parts.view().Rows(128, 300), 3, tables.cos.view(), tables.sin.view(), positions.data() + 128, false);
  EXPECT_TRUE(parts.bytes() == whole.bytes());
}

}  // namespace
}  // namespace longhaul::kernels
