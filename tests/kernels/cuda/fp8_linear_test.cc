#include "kernels/shapes/fp8_linear.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace longhaul::kernels::cuda {
namespace {

TEST(Fp8LinearTest, ArraysDoNotOverlapAndAreAligned) {
  for (const Fp8Linear& l : {Fp8Linear{960, 576, 48}, {4096, 12288, 16}, {16, 16, 8}, {48, 80, 0}}) {
    EXPECT_GE(l.forward_scale(), l.out * l.in);
    EXPECT_GE(l.backward(), l.forward_scale() + 4 * l.out);
    EXPECT_GE(l.backward_scale(), l.backward() + l.out * l.in);
    EXPECT_GE(l.cache_bytes(), l.backward_scale() + 4 * l.in);
    EXPECT_GE(l.one_way_bytes(), Fp8Linear::Up(l.out * l.in) + 4 * std::max(l.out, l.in));
    EXPECT_GE(l.a_offset_bytes(), 2 * l.out * l.rank);
    EXPECT_GE(l.adapter_bytes(), l.a_offset_bytes() + 2 * l.in * l.rank);
    for (int64_t offset : {l.forward_scale(), l.backward(), l.backward_scale(), l.cache_bytes(), l.a_offset_bytes()}) {
      EXPECT_EQ(offset % kFp8AlignBytes, 0);
    }
    // What is lost to alignment is next to nothing: twice a byte a weight.
    EXPECT_LE(l.cache_bytes(), 2 * l.out * l.in + 4 * (l.out + l.in) + 4 * kFp8AlignBytes);
  }
}

TEST(Fp8LinearTest, ProductsSumAlongContiguousRows) {
  const Fp8Linear linear{960, 576, 48};
  const GemmShape forward = Fp8Forward(linear, 256, 1024, true), backward = Fp8Backward(linear, 256, 576, false);
  EXPECT_TRUE(CheckGemmShape(forward).ok());
  EXPECT_TRUE(CheckGemmShape(backward).ok());
  EXPECT_EQ(GemmKey(forward), "e4m3>bf16 NT m256 n960 k576 a576 b576 c1024 al16 +c fast row");
  EXPECT_EQ(GemmKey(backward), "e4m3>bf16 NT m256 n576 k960 a960 b960 c576 al16 fast row");
}

TEST(Fp8LinearTest, RowsHaveTheirScalesBehindThem) {
  EXPECT_EQ(Fp8RowsScale(3, 96), 512);
  EXPECT_EQ(Fp8RowsBytes(3, 96), 768);
}

}  // namespace
}  // namespace longhaul::kernels::cuda
