#include "worker/formats/gguf.h"

#include <string>

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/formats/test_support.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

std::string Str(const std::string& s) { return Le<uint64_t>(s.size()) + s; }
std::string Head(uint64_t tensors, uint64_t key_values, uint32_t version = 3) {
  return "GGUF" + Le(version) + Le(tensors) + Le(key_values);
}
std::string TensorInfo(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
  std::string out = Str(name) + Le<uint32_t>(static_cast<uint32_t>(dims.size()));
  for (uint64_t dim : dims) out += Le(dim);
  return out + Le(type) + Le(offset);
}
std::string Padded(std::string bytes) {
  bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
  return bytes;
}

std::string ErrorOf(const std::string& bytes) {
  const auto file = GgufFile::FromBytes(bytes, "m.gguf");
  if (file.ok()) return "OK";
  EXPECT_THAT(file.status().message(), HasSubstr("m.gguf: "));
  return std::string(file.status().message());
}

// Golden: written by the gguf package.
TEST(GgufTest, ReadsEveryMetadataType) {
  const auto file = GgufFile::Open(Golden("formats_metadata.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file->String("general.architecture"), "metadata");
  EXPECT_EQ(*file->Int("t.u8"), 200);
  EXPECT_EQ(*file->Int("t.i8"), -100);
  EXPECT_EQ(*file->Int("t.u16"), 60000);
  EXPECT_EQ(*file->Int("t.i16"), -30000);
  EXPECT_EQ(*file->Int("t.u32"), 4000000000);
  EXPECT_EQ(*file->Int("t.i32"), -2000000000);
  EXPECT_EQ(*file->Int("t.i64"), -(int64_t{1} << 62));
  EXPECT_FALSE(file->Int("t.u64").ok());  // past int64
  EXPECT_EQ(*file->Float("t.f32"), static_cast<double>(0.1f));
  EXPECT_EQ(*file->Float("t.f64"), 0.1);
  EXPECT_EQ(*file->Float("t.i8"), -100.0);
  EXPECT_EQ(file->FindValue("t.bool")->AsBool(), true);
  EXPECT_EQ(file->FindValue("t.bool")->AsInt(), std::nullopt);
  EXPECT_EQ(*file->String("t.string"), "gr\u00fc\u00df dich");
  EXPECT_EQ(file->FindValue("t.ints")->AsIntArray(), (std::vector<int64_t>{3, -4, 5}));
  EXPECT_EQ(file->FindValue("t.ints")->AsFloatArray(), std::nullopt);
  EXPECT_EQ(file->FindValue("t.floats")->AsFloatArray(), (std::vector<float>{0.5f, -1.25f}));
  EXPECT_EQ(file->FindValue("t.strings")->strings(), (std::vector<std::string_view>{"a", "", "\u20ac"}));
  EXPECT_EQ(file->FindValue("t.strings")->AsIntArray(), std::nullopt);
}

TEST(GgufTest, TypedAccessNamesKeyAndFile) {
  const auto file = GgufFile::Open(Golden("formats_metadata.gguf"));
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(file->Int("t.none").status().message(), HasSubstr("formats_metadata.gguf: metadata lacks t.none"));
  EXPECT_THAT(file->Int("t.string").status().message(), HasSubstr("t.string is no integer"));
  EXPECT_THAT(file->String("t.u8").status().message(), HasSubstr("t.u8 is no string"));
  EXPECT_THAT(file->Float("t.bool").status().message(), HasSubstr("t.bool is no number"));
  EXPECT_EQ(*file->Int("t.none", 7), 7);
}

TEST(GgufTest, ReadsTensorsInTheMiddleOfTheMapping) {
  const std::string info = TensorInfo("a", {2, 3}, 0, 0) + TensorInfo("b", {32}, 8, 32);
  const std::string bytes = Padded(Head(2, 0) + info) + Padded(std::string(24, '\1')) + std::string(34, '\2');
  const auto file = GgufFile::FromBytes(bytes, "m.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufTensor* a = file->FindTensor("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->cols(), 2);
  EXPECT_EQ(a->rows(), 3);
  EXPECT_EQ(a->bytes, 24);
  const GgufTensor* b = file->FindTensor("b");
  EXPECT_EQ(b->type, StorageType::kQ8_0);
  EXPECT_EQ(file->Data(*b)[0], 2);
  EXPECT_EQ(file->Data(*b) + 34, reinterpret_cast<const uint8_t*>(bytes.data()) + bytes.size());
  EXPECT_EQ(file->FindTensor("c"), nullptr);
}

TEST(GgufTest, RefusesABadHead) {
  EXPECT_THAT(ErrorOf("GG"), HasSubstr("byte 0: magic of 4 bytes"));
  EXPECT_THAT(ErrorOf("GGML" + std::string(40, '\0')), HasSubstr("byte 0"));
  EXPECT_THAT(ErrorOf(Head(0, 0, 2)), HasSubstr("GGUF version 2; 3 is supported"));
  EXPECT_EQ(ErrorOf(Head(0, 0)), "OK");
}

TEST(GgufTest, ALyingCountIsRefusedBeforeAnythingIsAllocated) {
  EXPECT_THAT(ErrorOf(Head(UINT64_MAX, 0)),
              HasSubstr("byte 8: tensor count is 18446744073709551615; the limit is 100000"));
  EXPECT_THAT(ErrorOf(Head(0, 100001)), HasSubstr("byte 16: metadata count is 100001; the limit is 100000"));
  EXPECT_THAT(ErrorOf(Head(100000, 0)), HasSubstr("more than the 8 bytes left"));
  EXPECT_THAT(ErrorOf(Head(0, 100000)), HasSubstr("more than the 0 bytes left"));
  const std::string array = Head(0, 1) + Str("k") + Le<uint32_t>(9);
  EXPECT_THAT(ErrorOf(array + Le<uint32_t>(8) + Le<uint64_t>(16 << 20)), HasSubstr("more than the 0 bytes left"));
  EXPECT_THAT(ErrorOf(array + Le<uint32_t>(8) + Le<uint64_t>((16 << 20) + 1)), HasSubstr("the limit is 16777216"));
  EXPECT_THAT(ErrorOf(array + Le<uint32_t>(12) + Le<uint64_t>(2) + std::string(15, 'x')), HasSubstr("15 bytes left"));
}

TEST(GgufTest, RefusesBadMetadata) {
  EXPECT_THAT(ErrorOf(Head(0, 1) + Str("key") + Le<uint32_t>(13)), HasSubstr("value type 13"));
  EXPECT_THAT(ErrorOf(Head(0, 1) + Str("") + Le<uint32_t>(0) + "xxxx"), HasSubstr("metadata key of 0 bytes"));
  EXPECT_THAT(ErrorOf(Head(0, 1) + Str("key") + Le<uint32_t>(10) + "abc"), HasSubstr("value of 8 bytes"));
  EXPECT_THAT(ErrorOf(Head(0, 1) + Str("key") + Le<uint32_t>(9) + Le<uint32_t>(9) + Le<uint64_t>(1)),
              HasSubstr("array element type 9"));
  const std::string pair = Str("key") + Le<uint32_t>(0) + "x";
  EXPECT_THAT(ErrorOf(Head(0, 2) + pair + pair), HasSubstr("\"key\" comes twice"));
  EXPECT_THAT(ErrorOf(Head(0, 1) + Le<uint64_t>((64 << 20) + 1) + std::string(14, 'x')),
              HasSubstr("the limit is 67108864"));
}

TEST(GgufTest, RefusesBadTensors) {
  const auto with = [](const std::string& info, size_t data_bytes = 64) {
    return ErrorOf(Padded(Head(1, 0) + info) + std::string(data_bytes, 'x'));
  };
  EXPECT_EQ(with(TensorInfo("t", {4}, 0, 0)), "OK");
  EXPECT_THAT(with(TensorInfo("", {4}, 0, 0)), HasSubstr("tensor name of 0 bytes"));
  EXPECT_THAT(with(TensorInfo(std::string(64, 'n'), {4}, 0, 0)), HasSubstr("tensor name of 64 bytes"));
  EXPECT_EQ(with(TensorInfo(std::string(63, 'n'), {4}, 0, 0)), "OK");
  EXPECT_THAT(with(TensorInfo("t", {1, 1, 1, 1, 1}, 0, 0)), HasSubstr("5 dimensions; the limit is 4"));
  EXPECT_THAT(with(TensorInfo("t", {4, 0}, 0, 0)), HasSubstr("dimension 1 is 0"));
  EXPECT_THAT(with(TensorInfo("t", {UINT64_MAX}, 0, 0)), HasSubstr("dimension 0 is"));
  EXPECT_THAT(with(TensorInfo("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0)), HasSubstr("overflows"));
  EXPECT_THAT(with(TensorInfo("t", {uint64_t{1} << 62}, 0, 0)), HasSubstr("no whole blocks"));
  EXPECT_THAT(with(TensorInfo("t", {16, 2}, 3, 0)), HasSubstr("rows of 16 elements are no whole blocks of Q4_1"));
  EXPECT_THAT(with(TensorInfo("t", {256}, 13, 0)), HasSubstr("type Q5_K is not supported"));
  EXPECT_THAT(with(TensorInfo("t", {4}, 77, 0)), HasSubstr("unknown type 77"));
  EXPECT_THAT(with(TensorInfo("t", {4}, 0, 32)), HasSubstr("offset 32; the tensors before it end at 0"));
  EXPECT_THAT(with(TensorInfo("t", {4}, 0, UINT64_MAX)), HasSubstr("past the end of the file"));
  EXPECT_THAT(with(TensorInfo("t", {4}, 0, 0), 15), HasSubstr("of a file of"));
  EXPECT_EQ(with(TensorInfo("t", {4}, 0, 0), 16), "OK");
  EXPECT_THAT(with(TensorInfo("t", {1 << 20}, 0, 0)), HasSubstr("bytes at data offset 0"));
  const std::string twice = TensorInfo("t", {8}, 0, 0) + TensorInfo("t", {8}, 0, 32);
  EXPECT_THAT(ErrorOf(Padded(Head(2, 0) + twice) + std::string(64, 'x')), HasSubstr("comes twice"));
  const std::string alignment = Str("general.alignment") + Le<uint32_t>(4) + Le<uint32_t>(24);
  EXPECT_THAT(ErrorOf(Head(0, 1) + alignment), HasSubstr("general.alignment is 24"));
}

TEST(GgufTest, TextFromTheFileIsMadePrintable) {
  EXPECT_THAT(ErrorOf(Padded(Head(1, 0) + TensorInfo("\x1b[2J\xff", {4, 0}, 0, 0))), HasSubstr("\\x1b[2J\\xff"));
}

}  // namespace
}  // namespace longhaul::formats
