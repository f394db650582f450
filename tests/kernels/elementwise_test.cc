#include "base/random.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

// 1, odd, around the vector widths of 4, 8 and 16, and enough rows and columns to go parallel.
const std::vector<std::pair<int64_t, int64_t>>& Shapes() {
  static const std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 1},  {3, 7},  {2, 8},   {5, 9},    {1, 15},
                                                                  {4, 16}, {3, 17}, {2, 127}, {150, 129}};
  return shapes;
}

double Silu(double g) { return g / (1 + std::exp(-g)); }

class ElementwiseTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, ElementwiseTest, testing::Values(DType::kF32, DType::kF64), TypeName);

TEST_P(ElementwiseTest, SwiGluEqualsTheDefinition) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols] : Shapes()) {
    const Buffer gate = Buffer::Random(GetParam(), rows, cols, 1, 3, 4);
    const Buffer up = Buffer::Random(GetParam(), rows, cols, 2, 2);
    Buffer y(GetParam(), rows, cols, 1);
    SwiGlu(*exec, gate.view(), up.view(), y.view());
    // exp within 4 roundings (2^-22) in f32, then four operations.
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return Silu(gate(i, j)) * up(i, j); },
        [&](int64_t i, int64_t j) { return 8 * Epsilon(GetParam()) * (std::abs(Silu(gate(i, j)) * up(i, j)) + 1e-30); },
        "swiglu");
  }
}

TEST_P(ElementwiseTest, SwiGluBackwardInPlaceEqualsTheDefinition) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols] : Shapes()) {
    const Buffer gate = Buffer::Random(GetParam(), rows, cols, 1, 3, 4);
    const Buffer up = Buffer::Random(GetParam(), rows, cols, 2, 2);
    const Buffer dy = Buffer::Random(GetParam(), rows, cols, 3);
    Buffer y(GetParam(), rows, cols), forward(GetParam(), rows, cols);
    SwiGlu(*exec, gate.view(), up.view(), forward.view());
    Buffer dgate = gate, dup = up;
    SwiGluBackward(*exec, dy.view(), dgate.view(), dup.view(), dgate.view(), dup.view(), y.view());
    EXPECT_TRUE(y.bytes() == forward.bytes()) << "the recomputed product is the forward's";
    // s + g s (1 - s): |g| s (1 - s) <= 1.3, so a dozen roundings of the factors' size.
    const double epsilon = 16 * Epsilon(GetParam());
    const auto slope = [&](double g) {
      const double s = 1 / (1 + std::exp(-g));
      return s + g * s * (1 - s);
    };
    ExpectNear(
        dgate, [&](int64_t i, int64_t j) { return dy(i, j) * up(i, j) * slope(gate(i, j)); },
        [&](int64_t i, int64_t j) { return epsilon * 2 * std::abs(dy(i, j) * up(i, j)); }, "dgate");
    ExpectNear(
        dup, [&](int64_t i, int64_t j) { return dy(i, j) * Silu(gate(i, j)); },
        [&](int64_t i, int64_t j) { return epsilon * std::abs(dy(i, j) * gate(i, j)); }, "dup");
    Buffer separate(GetParam(), rows, cols), dup_separate(GetParam(), rows, cols);
    SwiGluBackward(*exec, dy.view(), gate.view(), up.view(), separate.view(), dup_separate.view(), {});
    ExpectNear(
        separate, [&](int64_t i, int64_t j) { return dgate(i, j); }, 0, "without aliasing, without y");
  }
}

TEST(SwiGluTest, BackwardMatchesCentralDifferences) {
  const auto exec = MakeExec(1);
  Buffer gate = Buffer::Random(DType::kF64, 3, 5, 1), up = Buffer::Random(DType::kF64, 3, 5, 2);
  const Buffer dy = Buffer::Random(DType::kF64, 3, 5, 3);
  Buffer dgate(DType::kF64, 3, 5), dup(DType::kF64, 3, 5), y(DType::kF64, 3, 5);
  SwiGluBackward(*exec, dy.view(), gate.view(), up.view(), dgate.view(), dup.view(), {});
  const auto f = [&] {
    SwiGlu(*exec, gate.view(), up.view(), y.view());
    return WeightedSum(dy, y);
  };
  ExpectGradient(gate, dgate, f, "gate");
  ExpectGradient(up, dup, f, "up");
}

TEST(SwiGluTest, SaturatedGatesStayFinite) {
  const auto exec = MakeExec(1);
  Buffer gate(DType::kF32, 1, 4), up(DType::kF32, 1, 4), dy(DType::kF32, 1, 4);
  up.Fill(1);
  dy.Fill(1);
  const double values[] = {-1e4, -90, 90, 1e4};
  for (int64_t j = 0; j < 4; ++j) gate.Set(0, j, values[j]);
  Buffer y(DType::kF32, 1, 4), dgate(DType::kF32, 1, 4), dup(DType::kF32, 1, 4);
  SwiGluBackward(*exec, dy.view(), gate.view(), up.view(), dgate.view(), dup.view(), y.view());
  const double products[] = {0, 0, 90, 1e4};
  const double slopes[] = {0, 0, 1, 1};
  ExpectNear(
      y, [&](int64_t, int64_t j) { return products[j]; }, 1e-30, "product");
  ExpectNear(
      dgate, [&](int64_t, int64_t j) { return slopes[j]; }, 1e-30, "slope");
}

TEST_P(ElementwiseTest, AddScaleZeroKeepTheGap) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols] : Shapes()) {
    const Buffer x = Buffer::Random(GetParam(), rows, cols, 1, 3);
    const Buffer before = Buffer::Random(GetParam(), rows, cols, 2, 1);
    Buffer y = before;
    Add(*exec, x.view(), y.view());
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return x(i, j) + before(i, j); },
        [&](int64_t i, int64_t j) { return Epsilon(GetParam()) * std::abs(x(i, j) + before(i, j)); }, "add");
    y = before;
    Scale(*exec, -2, y.view());
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return -2 * before(i, j); }, 0, "scale");
    y = Buffer(GetParam(), rows, cols, 2);
    Zero(*exec, y.view());
    ExpectNear(
        y, [](int64_t, int64_t) { return 0.0; }, 0, "zero");
  }
}

TEST(CopyTest, ConvertsBetweenTheFloatTypes) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols] : Shapes()) {
    for (const DType from : {DType::kF32, DType::kF64, DType::kBF16}) {
      for (const DType to : {DType::kF32, DType::kF64, DType::kBF16}) {
        const Buffer x = Buffer::Random(from, rows, cols, 1, 3);
        Buffer y(to, rows, cols, 2);
        Copy(*exec, x.view(), y.view());
        // Exact where the target is as wide; else half a unit of the last place, relative to the value.
        const double epsilon = DTypeBytes(to) >= DTypeBytes(from) ? 0 : (to == DType::kBF16 ? 0x1.0002p-8 : 0x1p-24);
        ExpectNear(
            y, [&](int64_t i, int64_t j) { return x(i, j); },
            [&](int64_t i, int64_t j) { return epsilon * std::abs(x(i, j)); }, "copy");
      }
    }
  }
}

TEST(GatherRowsTest, TakesRowsOfEveryTableType) {
  const auto exec = MakeExec(2);
  const std::vector<int32_t> ids = {4, 0, 0, 10, 3};
  for (const DType table_type : {DType::kF32, DType::kBF16, DType::kF64}) {
    const Buffer table = Buffer::Random(table_type, 11, 17, 1, 1);
    const DType to = table_type == DType::kF64 ? DType::kF64 : DType::kF32;
    Buffer y(to, 5, 17, 2);
    GatherRows(*exec, table.view(), ids.data(), y.view());
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return table(ids[static_cast<size_t>(i)], j); }, 0, "gather");
  }
}

TEST(GatherRowsDeathTest, AnIdPastTheTableIsABug) {
  const auto exec = MakeExec(1);
  const Buffer table(DType::kF32, 4, 2), y(DType::kF32, 1, 2);
  const int32_t id = 4;
  EXPECT_DEATH(GatherRows(*exec, table.view(), &id, y.view()), "ids");
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
      [&](int64_t i, int64_t j) { return 2 * Epsilon(GetParam()) * std::abs(x(i, j)) / (1 - kP); }, "dropout");
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

TEST_P(ElementwiseTest, BitsDoNotDependOnThreads) {
  ExpectSameBits([&](const Exec& exec) {
    const Buffer gate = Buffer::Random(GetParam(), 200, 131, 1);
    const Buffer up = Buffer::Random(GetParam(), 200, 131, 2);
    const Buffer dy = Buffer::Random(GetParam(), 200, 131, 3);
    Buffer y(GetParam(), 200, 131), dgate = y, dup = y;
    SwiGlu(exec, gate.view(), up.view(), y.view());
    SwiGluBackward(exec, dy.view(), gate.view(), up.view(), dgate.view(), dup.view(), {});
    Add(exec, dgate.view(), dup.view());
    return std::vector<Buffer>{y, dgate, dup};
  });
}

}  // namespace
}  // namespace longhaul::kernels
