#include "kernels/shapes/gemm_shape.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace longhaul::kernels::cuda {
namespace {

GemmShape Small() { return {.m = 32, .n = 64, .k = 16, .a_stride = 16, .b_stride = 64, .c_stride = 64}; }

TEST(GemmShapeTest, KeysNameEveryFactAndParseBack) {
  GemmShape shape = Small();
  EXPECT_EQ(GemmKey(shape), "bf16>bf16 NN m32 n64 k16 a16 b64 c64 al16");
  shape.transpose_a = shape.transpose_b = shape.accumulate = true;
  shape.a_stride = shape.b_stride = shape.c_stride = 128;
  shape.output = GemmElement::kF32;
  shape.alignment_bytes = 64;
  EXPECT_EQ(GemmKey(shape), "bf16>f32 TT m32 n64 k16 a128 b128 c128 al64 +c");
  const GemmShape fp8{.transpose_b = true,
                      .fast_accumulation = true,
                      .input = GemmElement::kE4M3,
                      .scale = GemmScale::kRow,
                      .m = 32,
                      .n = 64,
                      .k = 16,
                      .a_stride = 16,
                      .b_stride = 16,
                      .c_stride = 64};
  EXPECT_EQ(GemmKey(fp8), "e4m3>bf16 NT m32 n64 k16 a16 b16 c64 al16 fast row");
  for (const GemmShape& each : {Small(), shape, fp8}) {
    const auto parsed = ParseGemmKey(GemmKey(each));
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    EXPECT_TRUE(*parsed == each);
  }
}

TEST(GemmShapeTest, BrokenKeysAreRefused) {
  const std::string key = GemmKey(Small());
  const std::vector<std::string> broken = {"",
                                           key + " x1",
                                           key + " k",
                                           key + " m32",
                                           " " + key,
                                           "bf16>bf16 NN m32 n64 k16 a16 b64 al16",
                                           "bf16>bf16 NX m32 n64 k16 a16 b64 c64 al16",
                                           "f32>bf16 NN m32 n64 k16 a16 b64 c64 al16"};
  for (const std::string& text : broken) {
    EXPECT_EQ(ParseGemmKey(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

// What is wrong with a shape after one change: the field that the error names.
std::string Fault(void (*change)(GemmShape*)) {
  GemmShape shape = Small();
  change(&shape);
  const absl::Status status = CheckGemmShape(shape);
  return status.ok() ? "" : ErrorViolations(status).at(0).field;
}

TEST(GemmShapeTest, ChecksNameTheField) {
  EXPECT_EQ(Fault([](GemmShape*) {}), "");
  EXPECT_EQ(Fault([](GemmShape* s) { s->m = 0; }), "m");
  EXPECT_EQ(Fault([](GemmShape* s) { s->k = int64_t{1} << 31; }), "k");
  EXPECT_EQ(Fault([](GemmShape* s) { s->a_stride = 8; }), "a_stride");
  EXPECT_EQ(Fault([](GemmShape* s) { s->b_stride = 68; }), "b_stride");
  EXPECT_EQ(Fault([](GemmShape* s) { s->c_stride = 63; }), "c_stride");
  EXPECT_EQ(Fault([](GemmShape* s) { s->transpose_a = true; }), "a_stride");
  EXPECT_EQ(Fault([](GemmShape* s) { s->alignment_bytes = 12; }), "alignment_bytes");
  EXPECT_EQ(Fault([](GemmShape* s) { s->input = GemmElement::kF32; }), "input");
  EXPECT_EQ(Fault([](GemmShape* s) { s->output = GemmElement::kE4M3; }), "output");
  EXPECT_EQ(Fault([](GemmShape* s) { s->scale = GemmScale::kRow; }), "scale");
  EXPECT_EQ(Fault([](GemmShape* s) { s->fast_accumulation = true; }), "fast_accumulation");
  EXPECT_EQ(Fault([](GemmShape* s) {
              s->input = GemmElement::kE4M3;
              s->scale = GemmScale::kTensor;
            }),
            "transpose_b");
}

}  // namespace
}  // namespace longhaul::kernels::cuda
