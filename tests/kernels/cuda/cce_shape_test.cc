#include "kernels/shapes/cce_shape.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/units.h"

namespace longhaul::kernels::cuda {
namespace {

TEST(CceShapeTest, TilesOfLlamaStayWithinTheirFigures) {
  // 2,048 rows of 16,896 bf16 logits, 66 MiB, and 2,048 sums of 4,096, 32 MiB.
  const CceLayout fast = CceWorkspace(MakeCceShape(16384, 4096, 128256, 2048), 32 * kMiB);
  EXPECT_EQ(fast.logits_stride, 16896);
  EXPECT_EQ(fast.softmax, 2048 * 16896 * 2);
  EXPECT_LE(fast.bytes, 160 * kMiB);
  EXPECT_LE(CceWorkspace(MakeCceShape(16384, 4096, 128256, 1024), 16 * kMiB).bytes, 80 * kMiB);
  CceShape kept = MakeCceShape(16384, 4096, 128256, 2048);
  kept.negligible = true;
  EXPECT_LE(CceWorkspace(kept, 32 * kMiB).bytes, 160 * kMiB);
}

TEST(CceShapeTest, PartsFollowEachOtherAligned) {
  CceShape shape = MakeCceShape(100, 64, 1003, 32);
  shape.negligible = true;
  shape.full_rows = 48;
  const CceLayout layout = CceWorkspace(shape, 1000);
  EXPECT_EQ(layout.logits_stride, 1024);
  const int64_t parts[] = {layout.logits,      layout.softmax,     layout.lse,     layout.d_sum, layout.entries,
                           layout.counts,      layout.lost,        layout.is_full, layout.full,  layout.state,
                           layout.full_hidden, layout.full_labels, layout.places,  layout.gemm,  layout.bytes};
  int64_t before = 0;
  for (const int64_t part : parts) {
    EXPECT_EQ(part % 256, 0);
    EXPECT_GE(part, before);
    before = part;
  }
  EXPECT_GE(layout.bytes - layout.gemm, 1000);
  EXPECT_EQ(layout.softmax, 48 * 1024 * 2) << "the larger of both tiles";
  EXPECT_GE(layout.counts - layout.entries, 32 * kCceKeptPerRow * 8);
  EXPECT_GE(layout.state - layout.full, 400);
  shape.negligible = false;
  EXPECT_EQ(CceWorkspace(shape, 0).entries, CceWorkspace(shape, 0).gemm) << "lists where nothing is negligible";
  // Fewer rows than a tile: the tile is as small.
  EXPECT_EQ(CceWorkspace(MakeCceShape(8, 64, 1024, 512), 0).softmax, 8 * 1024 * 2);
}

TEST(CceShapeTest, ProductsCoverEveryTile) {
  // Rows 70 = 32 + 32 + 6; columns 1003 = 3 * 256 + 235.
  CceShape shape = MakeCceShape(70, 64, 1003, 32);
  shape.tile_cols = 256;
  auto gemms = CceGemms(shape);
  // For each number of rows: logits of 256 and 235, gradients of the first 256, further 256 and 235.
  EXPECT_EQ(gemms.size(), 10u);
  for (const GemmShape& gemm : gemms) {
    EXPECT_TRUE(CheckGemmShape(gemm).ok()) << GemmKey(gemm);
    EXPECT_TRUE(gemm.m == 32 || gemm.m == 6) << GemmKey(gemm);
  }
  EXPECT_FALSE(CceGradientGemm(shape, 32, 256, true).accumulate);
  EXPECT_TRUE(CceGradientGemm(shape, 32, 256, false).accumulate);
  shape.negligible = true;
  shape.full_rows = 16;
  // Only the rows that take all columns have gradients by a product.
  gemms = CceGemms(shape);
  EXPECT_EQ(gemms.size(), 9u);
  for (const GemmShape& gemm : gemms) EXPECT_TRUE(gemm.transpose_b || gemm.m == 16) << GemmKey(gemm);
  shape.logits = GemmElement::kF32;
  EXPECT_EQ(CceGradientGemm(shape, 32, 235, false).a_stride, 512) << "bf16 weights in the place of f32 logits";
}

std::string Fault(CceShape shape, void (*change)(CceShape*)) {
  change(&shape);
  const absl::Status status = CheckCceShape(shape);
  return status.ok() ? "" : ErrorViolations(status).at(0).field;
}

TEST(CceShapeTest, ChecksNameTheField) {
  const CceShape shape = MakeCceShape(64, 64, 1003, 32);
  EXPECT_EQ(Fault(shape, [](CceShape*) {}), "");
  EXPECT_EQ(Fault(shape, [](CceShape* s) { s->rows = 0; }), "rows");
  EXPECT_EQ(Fault(shape, [](CceShape* s) { s->tile_rows = 40'000; }), "tile_rows");
  EXPECT_EQ(Fault(shape, [](CceShape* s) { s->hidden = 60; }), "hidden");
  EXPECT_EQ(Fault(shape, [](CceShape* s) { s->head_stride = 8; }), "b_stride");
  EXPECT_EQ(Fault(shape, [](CceShape* s) { s->tile_cols = 100; }), "tile_cols");
  EXPECT_EQ(Fault(shape, [](CceShape* s) { s->tile_cols = 24'640; }), "tile_cols");
  EXPECT_EQ(Fault(shape,
                  [](CceShape* s) {
                    s->negligible = true;
                    s->full_rows = 0;
                  }),
            "full_rows");
}

}  // namespace
}  // namespace longhaul::kernels::cuda
