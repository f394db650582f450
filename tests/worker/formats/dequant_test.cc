#include "worker/formats/dequant.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/formats/test_support.h"
#include "worker/formats/gguf.h"

namespace longhaul::formats {
namespace {

class DequantTest : public testing::TestWithParam<const char*> {};

// Golden: the gguf package's quantize and dequantize (tests/golden/make_golden_formats.py).
TEST_P(DequantTest, IsBitEqualToTheReference) {
  const std::string name = GetParam();
  const absl::StatusOr<GgufFile> file = GgufFile::Open(Golden("formats_quants.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::StatusOr<SafetensorsSet> golden = SafetensorsSet::OpenFile(Golden("formats_quants_expected.safetensors"));
  ASSERT_TRUE(golden.ok()) << golden.status();
  const GgufTensor* tensor = file->FindTensor(name);
  ASSERT_NE(tensor, nullptr);
  ASSERT_EQ(tensor->rows(), 4);
  ASSERT_EQ(tensor->cols(), 512);
  std::vector<float> out(4 * 512, std::nanf(""));
  DequantizeRows(tensor->type, file->Data(*tensor), 4, 512, out.data());
  EXPECT_EQ(Bits(out), Bits(Floats(*golden, name)));

  // A row alone, from an address without alignment, is the same row.
  const int64_t row_bytes = StorageBytes(tensor->type, 512);
  std::string moved = "x" + std::string(reinterpret_cast<const char*>(file->Data(*tensor)) + 2 * row_bytes,
                                        static_cast<size_t>(row_bytes));
  std::vector<float> row(512, std::nanf(""));
  DequantizeRows(tensor->type, moved.data() + 1, 1, 512, row.data());
  EXPECT_EQ(Bits(row), Bits({out.begin() + 1024, out.begin() + 1536}));
}

INSTANTIATE_TEST_SUITE_P(AllTypes, DequantTest,
                         testing::Values("f32", "f16", "bf16", "q4_0", "q4_1", "q8_0", "q4_k", "q6_k"));

TEST(StorageTypeTest, BytesRefusePartialBlocksAndOverflow) {
  EXPECT_EQ(StorageBytes(StorageType::kQ4_1, 64), 40);
  EXPECT_EQ(StorageBytes(StorageType::kQ4_1, 33), -1);
  EXPECT_EQ(StorageBytes(StorageType::kF32, -1), -1);
  EXPECT_EQ(StorageBytes(StorageType::kF64, int64_t{1} << 61), -1);
  EXPECT_EQ(MultiplyOrMinusOne(int64_t{1} << 32, int64_t{1} << 31), -1);
  EXPECT_EQ(MultiplyOrMinusOne(-1, 0), -1);
}

TEST(DequantDeathTest, RefusesATypeWithoutFloats) {
  float out = 0;
  const int64_t in = 0;
  EXPECT_DEATH(DequantizeRows(StorageType::kI64, &in, 1, 1, &out), "I64");
}

}  // namespace
}  // namespace longhaul::formats
