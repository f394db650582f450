#include "kernels/shapes/cce_shape.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/units.h"

namespace longhaul::kernels::cuda {
namespace {

TEST(CceShapeTest, TwoPassesOfLlamaStayWithinTheirFigures) {
  // 512 rows of 128,256 bf16 logits: 125.25 MiB; the second product splits k four ways in f32.
  const CceLayout fast = CceWorkspace(TwoPassCce(16384, 4096, 128256, 512), 32 * kMiB);
  EXPECT_EQ(fast.logits_stride, 128256);
  EXPECT_EQ(fast.lse, 512 * 128256 * 2);
  EXPECT_LE(fast.bytes, 160 * kMiB);
  const CceLayout small = CceWorkspace(TwoPassCce(16384, 4096, 128256, 256), 16 * kMiB);
  EXPECT_LE(small.bytes, 80 * kMiB);
  // Three passes: logits of 2 MiB, sums of 4 MiB.
  const CceLayout three = CceWorkspace(ThreePassCce(16384, 4096, 128256, 256, 4096), 0);
  EXPECT_EQ(three.bytes, 256 * 4096 * 2 + 1024 + 3072 + 256 * 4096 * 4);
}

TEST(CceShapeTest, PartsFollowEachOtherAligned) {
  CceShape shape = TwoPassCce(100, 64, 1003, 32);
  shape.negligible = true;
  shape.kept_chunk = 64;
  const CceLayout layout = CceWorkspace(shape, 1000);
  EXPECT_EQ(layout.logits_stride, 1024);
  const int64_t parts[] = {layout.logits, layout.lse,   layout.softmax, layout.d_sum, layout.head_chunk, layout.d_chunk,
                           layout.mass,   layout.flags, layout.kept,    layout.state, layout.gemm,       layout.bytes};
  int64_t before = 0;
  for (const int64_t part : parts) {
    EXPECT_EQ(part % 256, 0);
    EXPECT_GE(part, before);
    before = part;
  }
  EXPECT_GE(layout.bytes - layout.gemm, 1000);
  EXPECT_GE(layout.kept - layout.flags, 1003);
  EXPECT_EQ(layout.softmax, layout.d_sum) << "two passes keep no running sums";
  // Fewer rows than a tile: the tile is as small.
  EXPECT_EQ(CceWorkspace(TwoPassCce(8, 64, 1024, 512), 0).lse, 8 * 1024 * 2);
}

TEST(CceShapeTest, ProductsCoverEveryTile) {
  // Rows 70 = 32 + 32 + 6; columns 1003 = 3 * 256 + 235.
  const CceShape shape = ThreePassCce(70, 64, 1003, 32, 256);
  const auto gemms = CceGemms(shape);
  EXPECT_EQ(gemms.size(), 8u);
  for (const GemmShape& gemm : gemms) {
    EXPECT_TRUE(CheckGemmShape(gemm).ok()) << GemmKey(gemm);
    EXPECT_TRUE(gemm.m == 32 || gemm.m == 6) << GemmKey(gemm);
  }
  EXPECT_TRUE(CceGradientGemm(shape, 32, 256).accumulate);
  EXPECT_EQ(CceGradientGemm(shape, 32, 256).output, GemmElement::kF32);
  EXPECT_EQ(CceGradientGemm(TwoPassCce(70, 64, 1003, 32), 32, 1003).output, GemmElement::kBF16);
  CceShape wide = TwoPassCce(64, 64, 1003, 32);
  wide.logits = GemmElement::kF32;
  EXPECT_EQ(CceGradientGemm(wide, 32, 1003).a_stride, 2048) << "bf16 gradients in the place of f32 logits";
}

std::string Fault(CceShape shape, void (*change)(CceShape*)) {
  change(&shape);
  const absl::Status status = CheckCceShape(shape);
  return status.ok() ? "" : ErrorViolations(status).at(0).field;
}

TEST(CceShapeTest, ChecksNameTheField) {
  const CceShape two = TwoPassCce(64, 64, 1003, 32), three = ThreePassCce(64, 64, 1003, 32, 256);
  EXPECT_EQ(Fault(two, [](CceShape*) {}), "");
  EXPECT_EQ(Fault(three, [](CceShape*) {}), "");
  EXPECT_EQ(Fault(two, [](CceShape* s) { s->rows = 0; }), "rows");
  EXPECT_EQ(Fault(two, [](CceShape* s) { s->tile_rows = 40'000; }), "tile_rows");
  EXPECT_EQ(Fault(two, [](CceShape* s) { s->hidden = 60; }), "hidden");
  EXPECT_EQ(Fault(two, [](CceShape* s) { s->head_stride = 8; }), "b_stride");
  EXPECT_EQ(Fault(three, [](CceShape* s) { s->tile_cols = 100; }), "tile_cols");
  EXPECT_EQ(Fault(three,
                  [](CceShape* s) {
                    s->negligible = true;
                    s->kept_chunk = 64;
                  }),
            "negligible");
}

}  // namespace
}  // namespace longhaul::kernels::cuda
