#include <algorithm>

#include "base/counter_rng.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

struct Shape {
  int64_t rows, cols, gap;
};
// 1, odd, around the vector widths of 4, 8 and 16, whole vectors with a gap between rows, enough to go parallel.
const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {{1, 1, 0},  {3, 7, 3},  {2, 8, 8},   {5, 9, 1},     {1, 15, 3},
                                            {4, 16, 0}, {3, 17, 1}, {2, 127, 3}, {150, 129, 3}, {70, 256, 16}};
  return shapes;
}

class ElementwiseTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, ElementwiseTest, testing::ValuesIn(TestedTypes()), TypeName);

TEST_P(ElementwiseTest, AddScaleZeroKeepTheGap) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols, gap] : Shapes()) {
    const Buffer x = Buffer::Random(GetParam(), rows, cols, 1, gap);
    const Buffer before = Buffer::Random(GetParam(), rows, cols, 2, gap);
    Buffer y = before;
    Add(*exec, x.view(), y.view());
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return x(i, j) + before(i, j); },
        [&](int64_t i, int64_t j) {
          return Epsilon(GetParam()) * std::abs(x(i, j) + before(i, j)) + Stored(GetParam(), x(i, j) + before(i, j));
        },
        "add");
    y = before;
    Scale(*exec, -2, y.view());
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return -2 * before(i, j); }, 0, "scale");
    y = Buffer(GetParam(), rows, cols, gap);
    Zero(*exec, y.view());
    ExpectNear(
        y, [](int64_t, int64_t) { return 0.0; }, 0, "zero");
  }
}

// bf16 and whatever this backend computes in.
std::vector<DType> CopiedTypes() {
  std::vector<DType> types = TestedTypes();
  if (std::find(types.begin(), types.end(), DType::kBF16) == types.end()) types.push_back(DType::kBF16);
  return types;
}

TEST(CopyTest, ConvertsBetweenTheFloatTypes) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols, gap] : Shapes()) {
    for (const DType from : CopiedTypes()) {
      for (const DType to : CopiedTypes()) {
        for (const double factor : {1.0, -0.375, 1 / 3.0}) {
          const Buffer x = Buffer::Random(from, rows, cols, 1, gap);
          Buffer y(to, rows, cols, gap);
          if (factor == 1) {
            Copy(*exec, x.view(), y.view());
          } else {
            CopyScaled(*exec, factor, x.view(), y.view());
          }
          // A factor and the product are rounded to the type that is computed in. Without, it is exact where the target
          // is as wide; else half a unit of the last place, relative to the value.
          const double product = factor == 1 ? 0 : 2 * Epsilon(from);
          const double stored = DTypeBytes(to) >= DTypeBytes(from) && (factor == 1 || to != DType::kBF16)
                                    ? 0
                                    : (to == DType::kBF16 ? 0x1.0002p-8 : 0x1p-24);
          ExpectNear(
              y, [&](int64_t i, int64_t j) { return factor * x(i, j); },
              [&](int64_t i, int64_t j) { return (product + stored) * std::abs(factor * x(i, j)); }, "copy");
        }
      }
    }
  }
}

TEST_P(ElementwiseTest, GatherTakesRowsOfEveryTableType) {
  const auto exec = MakeExec(2);
  const TestVector<int32_t> ids = {4, 0, 0, 10, 3};
  for (const DType table_type : CopiedTypes()) {
    for (const int64_t cols : {17, 16}) {
      const Buffer table = Buffer::Random(table_type, 11, cols, 1, 8);
      Buffer y(GetParam(), 5, cols, 8);
      GatherRows(*exec, table.view(), ids.data(), y.view());
      const double epsilon = DTypeBytes(GetParam()) >= DTypeBytes(table_type) ? 0 : 0x1p-24;
      ExpectNear(
          y, [&](int64_t i, int64_t j) { return table(ids[static_cast<size_t>(i)], j); },
          [&](int64_t i, int64_t j) {
            const double value = table(ids[static_cast<size_t>(i)], j);
            return epsilon * std::abs(value) + (epsilon > 0 ? Stored(GetParam(), value) : 0);
          },
          "gather");
    }
  }
}

TEST_P(ElementwiseTest, ScatterPutsRowsBack) {
  const auto exec = MakeExec(2);
  const TestVector<int32_t> ids = {4, 0, 10, 3};
  for (const int64_t cols : {17, 16}) {
    const Buffer x = Buffer::Random(GetParam(), 4, cols, 1, 8);
    const Buffer before = Buffer::Random(GetParam(), 11, cols, 2, 16);
    Buffer y = before;
    ScatterRows(*exec, x.view(), ids.data(), y.view());
    ExpectNear(
        y,
        [&](int64_t i, int64_t j) {
          for (size_t k = 0; k < ids.size(); ++k) {
            if (ids[k] == i) return x(static_cast<int64_t>(k), j);
          }
          return before(i, j);
        },
        0, "scatter");
  }
}

TEST_P(ElementwiseTest, CountNonFiniteAddsUp) {
  const auto exec = MakeExec(2);
  for (const int64_t cols : {37, 64}) {
    Buffer x = Buffer::Random(GetParam(), 300, cols, 1, 8);  // the gap is NaN, and not counted
    Shared<int64_t> count(5);
    CountNonFinite(*exec, x.view(), count.get());
    EXPECT_EQ(count.value(), 5);
    x.Set(0, 0, std::nan(""));
    x.Set(299, cols - 1, std::numeric_limits<double>::infinity());
    x.Set(150, 20, -std::numeric_limits<double>::infinity());
    x.Set(7, 1, 3e38);
    CountNonFinite(*exec, x.view(), count.get());
    EXPECT_EQ(count.value(), 8);
  }
}

TEST_P(ElementwiseTest, DropoutKeepsAtItsRateAndReplays) {
  constexpr int64_t kRows = 200, kCols = 501;
  constexpr double kP = 0.3;
  constexpr uint64_t kKey = 0x1234;
  const auto exec = MakeExec(2);
  const Buffer x = Buffer::Random(GetParam(), kRows, kCols, 1);
  Buffer y(GetParam(), kRows, kCols);
  Dropout(*exec, x.view(), kKey, 0, kP, y.view());
  int64_t kept = 0;
  ExpectNear(
      y,
      [&](int64_t i, int64_t j) {
        const bool keep = CounterUniform(kKey, static_cast<uint64_t>(i * kCols + j)) >= kP;
        kept += keep;
        return keep ? x(i, j) / (1 - kP) : 0;
      },
      [&](int64_t i, int64_t j) {
        const double kept_value = std::abs(x(i, j)) / (1 - kP);
        return 2 * Epsilon(GetParam()) * kept_value + Stored(GetParam(), kept_value);
      },
      "dropout");
  // Binomial: 5 standard deviations, and the key is fixed.
  const double count = kRows * kCols;
  EXPECT_NEAR(static_cast<double>(kept), (1 - kP) * count, 5 * std::sqrt(kP * (1 - kP) * count));

  // In tiles, in place, on one thread: the position decides, not the call.
  const auto one = MakeExec(1);
  Buffer tiles = x;
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 77}, {77, 200}}) {
    const Tensor tile = tiles.view().Rows(begin, end);
    Dropout(*one, tile, kKey, begin, kP, tile);
  }
  EXPECT_TRUE(tiles.bytes() == y.bytes());

  Buffer other(GetParam(), kRows, kCols);
  Dropout(*exec, x.view(), kKey + 1, 0, kP, other.view());
  EXPECT_FALSE(other.bytes() == y.bytes());
  Dropout(*exec, x.view(), kKey, 0, 0, other.view());
  EXPECT_TRUE(other.bytes() == x.bytes()) << "p = 0 keeps everything as it is";
}

TEST(UniformTest, IsTheCountersNumbersOnEveryBackend) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols, gap] : Shapes()) {
    Buffer y(DType::kF32, rows, cols, gap);
    Uniform(*exec, 77, 3, 0.25, 1.5, y.view());
    const int64_t width = cols;
    ExpectNear(
        y,
        [width](int64_t i, int64_t j) {
          const volatile double scaled = 0.25 * (CounterUniform(77, static_cast<uint64_t>((3 + i) * width + j)) - 0.5);
          return static_cast<double>(static_cast<float>(1.5 + scaled));
        },
        0, "uniform");
  }
}

}  // namespace
}  // namespace longhaul::kernels
