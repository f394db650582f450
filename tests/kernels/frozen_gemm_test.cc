// FrozenForward, FrozenBackward, LoraForward and LoraBackward over the plain and the packed layouts. The packed f32
// path runs on every CPU: where the library wants no layout of its own, it packs into the plain one. bf16 runs where
// the CPU has it.
#include <algorithm>
#include <tuple>

#include "kernels/cpu/packed_gemm.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

// kLibraryF32: the library's blocks, also where panels are in use (the library then "packs" into a plain layout).
enum class Layout { kPlainF32, kPlainF64, kPackedF32, kLibraryF32, kPackedBF16 };

bool CpuHas(Layout layout) { return layout != Layout::kPackedBF16 || ProbeCpu().has_bf16; }

std::vector<Layout> Layouts() {
  std::vector<Layout> layouts;
  for (const Layout layout :
       {Layout::kPlainF32, Layout::kPlainF64, Layout::kPackedF32, Layout::kLibraryF32, Layout::kPackedBF16}) {
    if (CpuHas(layout)) layouts.push_back(layout);
  }
  return layouts;
}

int64_t RoundUp64(int64_t value) { return (value + 63) / 64 * 64; }

// A weight with everything that it points to.
struct Weight {
  Weight(const Exec& exec, Layout layout, int64_t out, int64_t in)
      : values(Buffer::Random(layout == Layout::kPlainF64 ? DType::kF64 : DType::kF32, out, in, 7)) {
    frozen.out = out;
    frozen.in = in;
    frozen.dtype = values.dtype();
    frozen.forward = frozen.backward = values.view().data;
    if (layout == Layout::kPlainF32 || layout == Layout::kPlainF64) return;
    bf16 = layout == Layout::kPackedBF16;
    frozen.dtype = bf16 ? DType::kBF16 : DType::kF32;
    frozen.packed = true;
    // As much as the memory plan gives it, and a canary.
    bytes = RoundUp64(out) * RoundUp64(in) * DTypeBytes(frozen.dtype);
    forward.assign(static_cast<size_t>(bytes) + 128, 0xA5);
    backward = forward;
    frozen.forward = Aligned(forward);
    frozen.backward = Aligned(backward);
    EXPECT_LE(cpu::PackedBytes(exec, out, in, false, bf16), bytes);
    EXPECT_LE(cpu::PackedBytes(exec, out, in, true, bf16), bytes);
    if (layout == Layout::kLibraryF32) {
      library = true;
      EXPECT_LE(cpu::LibraryBytes(exec, in, out, false), bytes);
      cpu::PackLibrary(exec, values.view(), false, false, frozen.forward);
      cpu::PackLibrary(exec, values.view(), true, false, frozen.backward);
    } else {
      PackWeight(exec, values.view(), frozen);
    }
    EXPECT_TRUE(CanaryIntact(forward) && CanaryIntact(backward));
  }

  // The bytes past the plan's size, after which nothing may be written.
  bool CanaryIntact(std::vector<uint8_t>& storage) const {
    const uint8_t* const end = storage.data() + storage.size();
    return std::all_of(static_cast<const uint8_t*>(Aligned(storage)) + bytes, end, [](uint8_t b) { return b == 0xA5; });
  }

  static void* Aligned(std::vector<uint8_t>& storage) {
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    return storage.data() + (64 - address % 64) % 64;
  }

  Buffer values;
  FrozenWeight frozen;
  bool bf16 = false;
  bool library = false;
  int64_t bytes = 0;
  std::vector<uint8_t> forward, backward;
};

std::unique_ptr<Exec> ExecFor(Layout layout, int threads) {
  return MakeExec(threads, layout == Layout::kPackedBF16 ? GemmType::kBF16 : GemmType::kF32);
}

void Multiply(const Exec& exec, const Weight& weight, bool backward, const Tensor& from, double beta,
              const Tensor& to) {
  std::vector<uint8_t> scratch(
      static_cast<size_t>(FrozenGemmScratchBytes(exec.gemm_type(), from.rows, weight.frozen.out, weight.frozen.in)));
  if (weight.library) {
    cpu::LibraryGemm(exec, from, backward ? weight.frozen.backward : weight.frozen.forward, false, beta, to, nullptr);
    return;
  }
  (backward ? FrozenBackward : FrozenForward)(exec, from, weight.frozen, beta, to, scratch.data());
}

void CheckAgainstDefinition(Layout layout, int threads, int64_t rows, int64_t out, int64_t in, bool backward,
                            double beta, int64_t gap) {
  const auto exec = ExecFor(layout, threads);
  const Weight weight(*exec, layout, out, in);
  const DType dtype = weight.values.dtype();
  const int64_t from_cols = backward ? out : in, to_cols = backward ? in : out;
  const Buffer x = Buffer::Random(dtype, rows, from_cols, 8, gap);
  const Buffer before = Buffer::Random(dtype, rows, to_cols, 9, gap);
  Buffer y = beta == 0 ? Buffer(dtype, rows, to_cols, gap) : before;
  Multiply(*exec, weight, backward, x.view(), beta, y.view());
  const auto sum = [&](int64_t i, int64_t j, bool absolute) {
    double total = 0;
    for (int64_t k = 0; k < from_cols; ++k) {
      const double product = x(i, k) * (backward ? weight.values(k, j) : weight.values(j, k));
      total += absolute ? std::abs(product) : product;
    }
    return total;
  };
  // f32: from_cols + 2 roundings of the sum of magnitudes. bf16: both factors rounded, 2^-8 each, on top.
  const double roundings = static_cast<double>(from_cols + 2) * Epsilon(dtype) + (weight.bf16 ? 0x1p-7 : 0);
  ExpectNear(
      y, [&](int64_t i, int64_t j) { return sum(i, j, false) + (beta == 0 ? 0 : before(i, j)); },
      [&](int64_t i, int64_t j) { return roundings * (sum(i, j, true) + std::abs(beta * before(i, j))); },
      "layout " + std::to_string(static_cast<int>(layout)) + (backward ? " backward" : " forward"));
}

TEST(FrozenGemmTest, EqualsTheDefinition) {
  for (const Layout layout : Layouts()) {
    for (const bool backward : {false, true}) {
      for (const double beta : {0.0, 1.0}) {
        for (const int64_t gap : {0, 5}) {
          CheckAgainstDefinition(layout, 2, 150, 96, 64, backward, beta, gap);
          CheckAgainstDefinition(layout, 1, 67, 97, 33, backward, beta, gap);
          CheckAgainstDefinition(layout, 2, 1, 1, 1, backward, beta, gap);
          CheckAgainstDefinition(layout, 2, 16, 130, 65, backward, beta, gap);
        }
      }
    }
  }
}

// The trap of logits that are rounded to bf16 before the log-sum-exp: 257 ones add up to 257, which bf16 does not have.
TEST(FrozenGemmTest, BF16ProductsAreNotRoundedToBF16) {
  if (!CpuHas(Layout::kPackedBF16)) GTEST_SKIP() << "this CPU has no bf16 products";
  constexpr int64_t kRows = 3, kOut = 65, kIn = 257;
  const auto exec = ExecFor(Layout::kPackedBF16, 2);
  Weight weight(*exec, Layout::kPackedBF16, kOut, kIn);
  Buffer ones(DType::kF32, kOut, kIn), x(DType::kF32, kRows, kIn), y(DType::kF32, kRows, kOut);
  for (int64_t j = 0; j < kIn; ++j) {
    for (int64_t i = 0; i < kOut; ++i) ones.Set(i, j, 1);
    for (int64_t i = 0; i < kRows; ++i) x.Set(i, j, 1);
  }
  PackWeight(*exec, ones.view(), weight.frozen);
  Multiply(*exec, weight, false, x.view(), 0, y.view());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kOut; ++j) EXPECT_EQ(y(i, j), 257.0);
  }
}

// Sums over 576, 1,536, 4,096 and 49,152 (a head's backward pass): a library that cut a long sum by the number of rows
// would show there.
TEST(FrozenGemmTest, HasTheSameBitsHoweverTheRowsAreCut) {
  constexpr int64_t kRows = 300;
  constexpr int64_t kShapes[][2] = {{192, 576}, {1536, 96}, {4096, 128}, {49152, 64}};
  for (const Layout layout : Layouts()) {
    const auto exec = ExecFor(layout, 2);
    for (const auto& [out, in] : kShapes) {
      const Weight weight(*exec, layout, out, in);
      for (const bool backward : {false, true}) {
        if (out == 49152 && (!backward || weight.values.dtype() == DType::kF64)) continue;
        const Buffer x = Buffer::Random(weight.values.dtype(), kRows, backward ? out : in, 8);
        Buffer whole(weight.values.dtype(), kRows, backward ? in : out);
        Multiply(*exec, weight, backward, x.view(), 0, whole.view());
        const bool large = out * in > 1 << 20;
        const std::vector<int64_t> cuts =
            large ? std::vector<int64_t>{17, 128}
                  : std::vector<int64_t>{1, 15, 16, 17, 24, 63, 64, 65, 100, 128, 172, 241, 299};
        for (const int64_t cut : cuts) {
          Buffer parts(weight.values.dtype(), kRows, backward ? in : out);
          Multiply(*exec, weight, backward, x.view().Rows(0, cut), 0, parts.view().Rows(0, cut));
          Multiply(*exec, weight, backward, x.view().Rows(cut, kRows), 0, parts.view().Rows(cut, kRows));
          EXPECT_TRUE(parts.bytes() == whole.bytes()) << "layout " << static_cast<int>(layout) << " backward "
                                                      << backward << " " << out << " x " << in << " cut at " << cut;
        }
      }
    }
  }
}

TEST(FrozenGemmTest, HasTheSameBitsForAnyThreadCountAndStride) {
  for (const Layout layout : Layouts()) {
    std::vector<Buffer> results;
    for (const int threads : {1, 2, 3}) {
      const auto exec = ExecFor(layout, threads);
      const Weight weight(*exec, layout, 200, 136);
      const DType dtype = weight.values.dtype();
      const Buffer x = Buffer::Random(dtype, 147, 136, 8);
      Buffer y = Buffer::Random(dtype, 147, 200, 9);
      Multiply(*exec, weight, false, x.view(), 1, y.view());
      results.push_back(y);

      // A column range of wider buffers, as q, k and v are.
      Buffer wide_x(dtype, 147, 150), wide_y(dtype, 147, 220);
      Copy(*exec, x.view(), wide_x.view().Cols(3, 139));
      Copy(*exec, Buffer::Random(dtype, 147, 200, 9).view(), wide_y.view().Cols(11, 211));
      Multiply(*exec, weight, false, wide_x.view().Cols(3, 139), 1, wide_y.view().Cols(11, 211));
      Buffer narrow(dtype, 147, 200);
      Copy(*exec, wide_y.view().Cols(11, 211), narrow.view());
      results.push_back(narrow);
    }
    for (const Buffer& result : results) {
      EXPECT_TRUE(result.bytes() == results[0].bytes()) << "layout " << static_cast<int>(layout);
    }
  }
}

// An adapter over the rows of a weight: `count` parts, the last columns of y without one.
struct Adapter {
  Adapter(DType dtype, int64_t out, int64_t in, int64_t rank, int64_t count)
      : a(Buffer::Random(dtype, count * rank, in, 11, 3)) {
    factors.scale = 1.5;
    factors.rank = rank;
    factors.count = count;
    factors.a = a.view();
    const int64_t part = out / (count + 1);
    for (int64_t i = 0; i < count; ++i) b.push_back(Buffer::Random(dtype, part, rank, 12 + static_cast<uint64_t>(i)));
    for (int64_t i = 0; i < count; ++i) factors.parts[i] = {b[static_cast<size_t>(i)].view(), i * part};
    rounded.resize(static_cast<size_t>(LoraFactorBytes(factors)));
    factors.rounded = rounded.data();
  }
  // Entry (row, column) of the stacked A, or of what B adds over all rows of W: zero where no part is.
  double A(int64_t i, int64_t j) const { return a(i, j); }
  double B(int64_t row, int64_t column) const {
    const int64_t i = column / factors.rank;
    const Buffer& own = b[static_cast<size_t>(i)];
    const int64_t at = row - factors.parts[i].out_begin;
    return at >= 0 && at < own.view().rows ? own(at, column % factors.rank) : 0;
  }

  Buffer a;
  std::vector<Buffer> b;
  std::vector<uint8_t> rounded;
  LoraFactors factors;
};

void MultiplyWithLora(const Exec& exec, const Weight& weight, const Adapter& adapter, bool backward, const Tensor& from,
                      double beta, const Tensor& to, const Tensor& t) {
  std::vector<uint8_t> scratch(
      static_cast<size_t>(FrozenGemmScratchBytes(exec.gemm_type(), from.rows, weight.frozen.out, weight.frozen.in)));
  if (backward) {
    LoraBackward(exec, from, weight.frozen, adapter.factors, to, t, scratch.data());
  } else {
    LoraForward(exec, from, weight.frozen, adapter.factors, beta, to, t, scratch.data());
  }
}

void CheckLora(Layout layout, int threads, int64_t rows, int64_t out, int64_t in, int64_t count, bool backward,
               double beta, int64_t gap) {
  constexpr int64_t kRank = 5;
  const auto exec = ExecFor(layout, threads);
  const Weight weight(*exec, layout, out, in);
  const DType dtype = weight.values.dtype();
  const Adapter adapter(dtype, out, in, kRank, count);
  const int64_t from_cols = backward ? out : in, to_cols = backward ? in : out;
  const Buffer x = Buffer::Random(dtype, rows, from_cols, 8, gap);
  const Buffer before = Buffer::Random(dtype, rows, to_cols, 9, gap);
  Buffer y = beta == 0 ? Buffer(dtype, rows, to_cols, gap) : before, t(dtype, rows, count * kRank, gap);
  MultiplyWithLora(*exec, weight, adapter, backward, x.view(), beta, y.view(), t.view());

  const double s = adapter.factors.scale;
  // t by its definition, and the sum of magnitudes.
  std::vector<double> t_values, t_magnitudes;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < count * kRank; ++c) {
      double total = 0, magnitudes = 0;
      for (int64_t k = 0; k < from_cols; ++k) {
        const double product = (backward ? s * adapter.B(k, c) : adapter.A(c, k)) * x(i, k);
        total += product;
        magnitudes += std::abs(product);
      }
      t_values.push_back(total);
      t_magnitudes.push_back(magnitudes);
    }
  }
  const auto low = [&](int64_t i, int64_t c, bool absolute) {
    return (absolute ? t_magnitudes : t_values)[static_cast<size_t>(i * count * kRank + c)];
  };
  const auto sum = [&](int64_t i, int64_t j, bool absolute) {
    double total = 0;
    for (int64_t k = 0; k < from_cols; ++k) {
      const double product = x(i, k) * (backward ? weight.values(k, j) : weight.values(j, k));
      total += absolute ? std::abs(product) : product;
    }
    for (int64_t c = 0; c < count * kRank; ++c) {
      const double factor = backward ? adapter.A(c, j) : s * adapter.B(j, c);
      total += low(i, c, absolute) * (absolute ? std::abs(factor) : factor);
    }
    return total;
  };
  // One rounding more than a product has for t, and for y those of t, of its own rounding and of the sum of both. bf16
  // rounds both factors of each product, 2^-8 each: two products in a chain make four.
  const double t_error = static_cast<double>(from_cols + 2) * Epsilon(dtype) + (weight.bf16 ? 0x1p-7 : 0);
  const double y_error =
      static_cast<double>(from_cols + count * kRank + 6) * Epsilon(dtype) + (weight.bf16 ? 0x1p-6 : 0);
  const std::string what = "layout " + std::to_string(static_cast<int>(layout)) + (backward ? " backward" : " forward");
  ExpectNear(
      t, [&](int64_t i, int64_t c) { return low(i, c, false); },
      [&](int64_t i, int64_t c) { return t_error * low(i, c, true); }, what + ", low rank");
  ExpectNear(
      y, [&](int64_t i, int64_t j) { return sum(i, j, false) + (beta == 0 ? 0 : before(i, j)); },
      [&](int64_t i, int64_t j) { return y_error * (sum(i, j, true) + std::abs(beta * before(i, j))); }, what);
}

TEST(LoraGemmTest, EqualsTheDefinition) {
  for (const Layout layout : Layouts()) {
    if (layout == Layout::kLibraryF32) continue;  // the same code as kPackedF32
    for (const bool backward : {false, true}) {
      for (const double beta : {0.0, 1.0}) {
        if (backward && beta != 0) continue;
        for (const int64_t gap : {0, 5}) {
          CheckLora(layout, 2, 150, 96, 64, 3, backward, beta, gap);
          CheckLora(layout, 1, 67, 97, 33, 1, backward, beta, gap);
          CheckLora(layout, 2, 300, 130, 65, 2, backward, beta, gap);
          CheckLora(layout, 2, 3, 8, 8, 3, backward, beta, gap);
        }
      }
    }
  }
}

// Recomputation, and u alone where y is not wanted, must give the bits of the first time.
TEST(LoraGemmTest, HasTheSameBitsHoweverRowsAreCutThreadsAndWithoutY) {
  constexpr int64_t kRows = 300, kRank = 16, kParts = 2;
  constexpr int64_t kShapes[][2] = {{192, 576}, {1536, 96}, {4608, 64}};
  for (const Layout layout : Layouts()) {
    if (layout == Layout::kLibraryF32) continue;
    const auto exec = ExecFor(layout, 2), exec1 = ExecFor(layout, 1);
    for (const auto& [out, in] : kShapes) {
      const Weight weight(*exec, layout, out, in);
      const DType dtype = weight.values.dtype();
      const Adapter adapter(dtype, out, in, kRank, kParts);
      for (const bool backward : {false, true}) {
        const Buffer x = Buffer::Random(dtype, kRows, backward ? out : in, 8);
        Buffer y(dtype, kRows, backward ? in : out), t(dtype, kRows, kParts * kRank);
        MultiplyWithLora(*exec, weight, adapter, backward, x.view(), 0, y.view(), t.view());
        const std::string what = "layout " + std::to_string(static_cast<int>(layout)) + " backward " +
                                 std::to_string(backward) + " " + std::to_string(out) + " x " + std::to_string(in);
        Buffer y1(dtype, kRows, backward ? in : out), t1(dtype, kRows, kParts * kRank);
        MultiplyWithLora(*exec1, weight, adapter, backward, x.view(), 0, y1.view(), t1.view());
        EXPECT_TRUE(y1.bytes() == y.bytes() && t1.bytes() == t.bytes()) << what << ", one thread";
        Buffer alone(dtype, kRows, kParts * kRank);
        MultiplyWithLora(*exec, weight, adapter, backward, x.view(), 0, {}, alone.view());
        EXPECT_TRUE(alone.bytes() == t.bytes()) << what << ", without y";
        for (const int64_t cut : {1, 17, 24, 64, 100, 172, 299}) {
          Buffer parts(dtype, kRows, backward ? in : out), t_parts(dtype, kRows, kParts * kRank);
          for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, kRows}}) {
            MultiplyWithLora(*exec, weight, adapter, backward, x.view().Rows(begin, end), 0,
                             parts.view().Rows(begin, end), t_parts.view().Rows(begin, end));
          }
          EXPECT_TRUE(parts.bytes() == y.bytes() && t_parts.bytes() == t.bytes()) << what << " cut at " << cut;
        }
      }
    }
  }
}

TEST(FrozenGemmTest, PanelsGiveTheProductOnEveryCpu) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, k, n] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{150, 65, 400}, {7, 33, 192}}) {
    const Buffer x = Buffer::Random(DType::kF32, rows, k, 1, 3), w = Buffer::Random(DType::kF32, n, k, 2);
    Buffer w_transposed(DType::kF32, k, n), y(DType::kF32, rows, n, 1), y_backward(DType::kF32, rows, n);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < n; ++j) w_transposed.Set(i, j, w(j, i));
    }
    std::vector<float> forward(static_cast<size_t>(k * n)), backward(static_cast<size_t>(k * n));
    cpu::PackPanels(*exec, w.view(), false, forward.data());
    cpu::PackPanels(*exec, w_transposed.view(), true, backward.data());
    EXPECT_EQ(forward, backward) << "the same k x n matrix from either side";
    cpu::PanelGemm(*exec, x.view(), forward.data(), 0, y.view());
    const auto sum = [&, k = k](int64_t i, int64_t j, bool absolute) {
      double total = 0;
      for (int64_t l = 0; l < k; ++l) total += absolute ? std::abs(x(i, l) * w(j, l)) : x(i, l) * w(j, l);
      return total;
    };
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return sum(i, j, false); },
        [&, k = k](int64_t i, int64_t j) { return static_cast<double>(k + 2) * 0x1p-24 * sum(i, j, true); }, "panels");
  }
}

TEST(FrozenGemmTest, PackedBytesAreWithinThePlansFormula) {
  const auto exec = MakeExec(1);
  EXPECT_EQ(PackedWeightBytes(*exec, 192, 576, false), 192 * 576 * 4);  // multiples of 64: nothing is padded
  EXPECT_GE(PackedWeightBytes(*exec, 97, 33, true), 97 * 33 * 4);
  EXPECT_LE(PackedWeightBytes(*exec, 97, 33, true), 128 * 64 * 4);
  EXPECT_EQ(FrozenGemmScratchBytes(GemmType::kF32, 100, 30, 50), 0);
  EXPECT_EQ(FrozenGemmScratchBytes(GemmType::kBF16, 100, 30, 50), 128 * 50 * 2);
}

}  // namespace
}  // namespace longhaul::kernels
