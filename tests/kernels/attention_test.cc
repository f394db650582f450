#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

struct Layout {
  int64_t heads, kv_heads, dim;
  std::vector<int64_t> offsets;  // of documents
  int64_t rows() const { return offsets.back(); }
  int64_t docs() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t longest() const {
    int64_t longest = 0;
    for (size_t d = 0; d + 1 < offsets.size(); ++d) longest = std::max(longest, offsets[d + 1] - offsets[d]);
    return longest;
  }
  AttentionShape shape() const {
    return {heads, kv_heads, dim, 1 / std::sqrt(static_cast<double>(dim)), offsets.data(), docs(), longest()};
  }
};

// One qkv buffer, as the engine has it: q, k and v are column ranges.
struct Inputs {
  Inputs(DType dtype, const Layout& l, uint32_t seed)
      : layout(l), qkv(Buffer::Random(dtype, l.rows(), (l.heads + 2 * l.kv_heads) * l.dim, seed, 5)) {}
  Tensor q() const { return qkv.view().Cols(0, layout.heads * layout.dim); }
  Tensor k() const { return qkv.view().Cols(layout.heads * layout.dim, (layout.heads + layout.kv_heads) * layout.dim); }
  Tensor v() const {
    return qkv.view().Cols((layout.heads + layout.kv_heads) * layout.dim,
                           (layout.heads + 2 * layout.kv_heads) * layout.dim);
  }
  double Q(int64_t i, int64_t h, int64_t c) const { return qkv(i, h * layout.dim + c); }
  double K(int64_t i, int64_t h, int64_t c) const { return qkv(i, (layout.heads + h) * layout.dim + c); }
  double V(int64_t i, int64_t h, int64_t c) const {
    return qkv(i, (layout.heads + layout.kv_heads + h) * layout.dim + c);
  }
  Layout layout;
  Buffer qkv;
};

struct Outputs {
  Outputs(DType dtype, const Layout& l)
      : o(dtype, l.rows(), l.heads * l.dim, 1),
        lse(dtype, l.rows(), l.heads),
        dq(dtype, l.rows(), l.heads * l.dim, 2),
        dk(dtype, l.rows(), l.kv_heads * l.dim, 3),
        dv(dtype, l.rows(), l.kv_heads * l.dim, 4) {}
  Buffer o, lse, dq, dk, dv;
};

void Forward(const Exec& exec, const Inputs& in, Outputs* out) {
  const Layout& l = in.layout;
  std::vector<uint8_t> scratch(static_cast<size_t>(AttentionScratchBytes(in.qkv.dtype(), exec.threads(), l.heads,
                                                                         l.kv_heads, l.dim, l.longest(), false)),
                               0xFF);  // NaN
  AttentionForward(exec, l.shape(), in.q(), in.k(), in.v(), out->o.view(), out->lse.view(), scratch.data());
}

void Backward(const Exec& exec, const Inputs& in, const Buffer& d_o, Outputs* out) {
  const Layout& l = in.layout;
  std::vector<uint8_t> scratch(static_cast<size_t>(AttentionScratchBytes(in.qkv.dtype(), exec.threads(), l.heads,
                                                                         l.kv_heads, l.dim, l.longest(), true)),
                               0xFF);
  AttentionBackward(exec, l.shape(), d_o.view(), in.q(), in.k(), in.v(), out->o.view(), out->lse.view(), out->dq.view(),
                    out->dk.view(), out->dv.view(), scratch.data());
}

// Everything in double, row by row, from the definition.
void Naive(const Inputs& in, const Buffer& d_o, Outputs* out) {
  const Layout& l = in.layout;
  const double scale = l.shape().scale;
  out->dk.Fill(0);
  out->dv.Fill(0);
  out->dq.Fill(0);
  for (size_t d = 0; d + 1 < l.offsets.size(); ++d) {
    for (int64_t h = 0; h < l.heads; ++h) {
      const int64_t g = h / (l.heads / l.kv_heads);
      for (int64_t i = l.offsets[d]; i < l.offsets[d + 1]; ++i) {
        std::vector<double> p;
        double sum = 0;
        for (int64_t j = l.offsets[d]; j <= i; ++j) {
          double score = 0;
          for (int64_t c = 0; c < l.dim; ++c) score += in.Q(i, h, c) * in.K(j, g, c);
          p.push_back(std::exp(scale * score));
          sum += p.back();
        }
        out->lse.Set(i, h, std::log(sum));
        double delta = 0;
        for (int64_t c = 0; c < l.dim; ++c) {
          double value = 0;
          for (size_t j = 0; j < p.size(); ++j)
            value += p[j] / sum * in.V(l.offsets[d] + static_cast<int64_t>(j), g, c);
          out->o.Set(i, h * l.dim + c, value);
          delta += d_o(i, h * l.dim + c) * value;
        }
        for (size_t at = 0; at < p.size(); ++at) {
          const int64_t j = l.offsets[d] + static_cast<int64_t>(at);
          double dp = 0;
          for (int64_t c = 0; c < l.dim; ++c) dp += d_o(i, h * l.dim + c) * in.V(j, g, c);
          const double ds = scale * p[at] / sum * (dp - delta);
          for (int64_t c = 0; c < l.dim; ++c) {
            out->dv.Set(j, g * l.dim + c, out->dv(j, g * l.dim + c) + p[at] / sum * d_o(i, h * l.dim + c));
            out->dk.Set(j, g * l.dim + c, out->dk(j, g * l.dim + c) + ds * in.Q(i, h, c));
            out->dq.Set(i, h * l.dim + c, out->dq(i, h * l.dim + c) + ds * in.K(j, g, c));
          }
        }
      }
    }
  }
}

const std::vector<Layout>& Layouts() {
  static const std::vector<Layout> layouts = {
      {1, 1, 4, {0, 1}},
      {2, 1, 8, {0, 5, 6, 6, 13}},   // one token, no token
      {3, 3, 7, {0, 129, 140}},      // a block and one row
      {6, 2, 16, {0, 1, 128, 300}},  // groups of three; 127 and 172 rows
      {4, 1, 33, {0, 31, 288}},      // all heads on one key head; two blocks exactly and one row
  };
  return layouts;
}

class AttentionTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, AttentionTest, testing::ValuesIn(TestedTypes()), TypeName);

TEST_P(AttentionTest, EqualsTheDefinitionForwardAndBackward) {
  for (const int threads : {1, 2}) {
    const auto exec = MakeExec(threads);
    for (const Layout& layout : Layouts()) {
      const Inputs in(GetParam(), layout, 1);
      const Buffer d_o = Buffer::Random(GetParam(), layout.rows(), layout.heads * layout.dim, 2, 1);
      Outputs out(GetParam(), layout), want(DType::kF64, layout);
      Naive(in, d_o, &want);
      Forward(*exec, in, &out);
      Backward(*exec, in, d_o, &out);
      // A score is a sum of dim products of normal numbers (below 40 in magnitude here), so its absolute error, which
      // is the relative error of every probability, is at most dim * epsilon * 40 * scale. o is a convex combination of
      // rows of v (below 5); the gradients add up to as many rows as a document has, with weights that sum to less than
      // the group's heads times a few: 64 stands for those sums.
      const double score_error = static_cast<double>(layout.dim + 16) * Epsilon(GetParam()) * 4;
      const auto value = [](const Buffer& b) { return [&b](int64_t i, int64_t j) { return b(i, j); }; };
      ExpectNear(out.lse, value(want.lse), score_error * 2, "lse");
      ExpectNear(out.o, value(want.o), score_error * 5, "o");
      ExpectNear(out.dv, value(want.dv), score_error * 64, "dv");
      ExpectNear(out.dq, value(want.dq), score_error * 64, "dq");
      ExpectNear(out.dk, value(want.dk), score_error * 64, "dk");
    }
  }
}

TEST(AttentionGradientTest, MatchesCentralDifferences) {
  const Layout layout{4, 2, 3, {0, 3, 8}};
  const auto exec = MakeExec(1);
  Inputs in(DType::kF64, layout, 1);
  const Buffer d_o = Buffer::Random(DType::kF64, layout.rows(), layout.heads * layout.dim, 2);
  Outputs out(DType::kF64, layout);
  Forward(*exec, in, &out);
  Backward(*exec, in, d_o, &out);
  Buffer gradient(DType::kF64, layout.rows(), in.qkv.cols());
  Copy(*exec, out.dq.view(), gradient.view().Cols(0, 12));
  Copy(*exec, out.dk.view(), gradient.view().Cols(12, 18));
  Copy(*exec, out.dv.view(), gradient.view().Cols(18, 24));
  ExpectGradient(
      in.qkv, gradient,
      [&] {
        Forward(*exec, in, &out);
        return WeightedSum(d_o, out.o);
      },
      "qkv");
}

TEST_P(AttentionTest, DocumentsDoNotSeeEachOtherToTheLastBit) {
  const auto exec = MakeExec(2);
  const Layout both{3, 1, 16, {0, 130, 180}};
  const Inputs in(GetParam(), both, 1);
  Outputs packed(GetParam(), both);
  Forward(*exec, in, &packed);
  // Each alone, with the scratch of its own length.
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 130}, {130, 180}}) {
    const Layout alone{3, 1, 16, {0, end - begin}};
    Outputs out(GetParam(), alone);
    std::vector<uint8_t> scratch(
        static_cast<size_t>(AttentionScratchBytes(GetParam(), 2, 3, 1, 16, end - begin, false)));
    AttentionForward(*exec, alone.shape(), in.q().Rows(begin, end), in.k().Rows(begin, end), in.v().Rows(begin, end),
                     out.o.view(), out.lse.view(), scratch.data());
    ExpectNear(
        out.o, [&, begin = begin](int64_t i, int64_t j) { return packed.o(begin + i, j); }, 0, "o");
    ExpectNear(
        out.lse, [&, begin = begin](int64_t i, int64_t j) { return packed.lse(begin + i, j); }, 0, "lse");
  }
}

TEST_P(AttentionTest, TheGradientOfQMayOverwriteQ) {
  const auto exec = MakeExec(2);
  const Layout layout{4, 2, 8, {0, 150, 170}};
  const Buffer d_o = Buffer::Random(GetParam(), layout.rows(), layout.heads * layout.dim, 2);
  Inputs in(GetParam(), layout, 1);
  Outputs out(GetParam(), layout);
  Forward(*exec, in, &out);
  Backward(*exec, in, d_o, &out);
  const Buffer want = out.dq;
  std::vector<uint8_t> scratch(static_cast<size_t>(AttentionScratchBytes(GetParam(), 2, 4, 2, 8, 150, true)));
  AttentionBackward(*exec, layout.shape(), d_o.view(), in.q(), in.k(), in.v(), out.o.view(), out.lse.view(), in.q(),
                    out.dk.view(), out.dv.view(), scratch.data());
  Copy(*exec, in.q(), out.dq.view());
  EXPECT_TRUE(out.dq.bytes() == want.bytes());
}

TEST_P(AttentionTest, HugeScoresStayFinite) {
  const auto exec = MakeExec(1);
  const Layout layout{1, 1, 4, {0, 40}};
  Inputs in(GetParam(), layout, 1);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < 8; ++j) in.qkv.Set(i, j, 100 * in.qkv(i, j));  // scores of some 10^4
  }
  const Buffer d_o = Buffer::Random(GetParam(), 40, 4, 2);
  Outputs out(GetParam(), layout);
  Forward(*exec, in, &out);
  Backward(*exec, in, d_o, &out);
  for (const Buffer* buffer : {&out.o, &out.lse, &out.dq, &out.dk, &out.dv}) EXPECT_TRUE(buffer->AllFinite());
}

TEST_P(AttentionTest, BitsDoNotDependOnThreads) {
  const Layout layout{6, 2, 16, {0, 40, 300, 391}};
  ExpectSameBits([&](const Exec& exec) {
    const Inputs in(GetParam(), layout, 1);
    const Buffer d_o = Buffer::Random(GetParam(), layout.rows(), layout.heads * layout.dim, 2);
    Outputs out(GetParam(), layout);
    Forward(exec, in, &out);
    Backward(exec, in, d_o, &out);
    return std::vector<Buffer>{out.o, out.lse, out.dq, out.dk, out.dv};
  });
}

TEST(AttentionScratchTest, IsOneBlockOfScoresAThreadNeverASquare) {
  EXPECT_EQ(AttentionScratchBytes(DType::kF32, 2, 9, 3, 64, 8192, false), 2 * 128 * 8192 * 4);
  EXPECT_EQ(AttentionScratchBytes(DType::kF32, 2, 9, 3, 64, 8192, true), 2 * 2 * 128 * 8192 * 4);
}

}  // namespace
}  // namespace longhaul::kernels
