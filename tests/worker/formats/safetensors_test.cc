#include "worker/formats/safetensors.h"

#include <cstring>
#include <string>

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/formats/test_support.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

std::string File(const std::string& json, size_t data_bytes) {
  return Le<uint64_t>(json.size()) + json + std::string(data_bytes, '\1');
}

std::string ErrorOf(const std::string& bytes) {
  const auto parsed = ParseSafetensors(bytes, "w.safetensors");
  if (parsed.ok()) return "OK";
  EXPECT_EQ(ErrorReason(parsed.status()), "FILE_INVALID");
  EXPECT_THAT(parsed.status().message(), HasSubstr("w.safetensors"));
  return std::string(parsed.status().message());
}

std::string ErrorOf(const std::string& json, size_t data_bytes) { return ErrorOf(File(json, data_bytes)); }

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape, int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST(SafetensorsTest, ReadsTensorsScalarsEmptiesAndMetadata) {
  const std::string bytes =
      File("{\"__metadata__\":{\"format\":\"pt\"}," + Tensor("b", "F16", "[2,1]", 4, 8) + "," +
               Tensor("a", "F32", "[]", 0, 4) + "," + Tensor("none", "F32", "[0,7]", 8, 8) + "}  ",
           8);
  const auto parsed = ParseSafetensors(bytes, "w");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tensors.size(), 3u);
  EXPECT_EQ(parsed->tensors[0].name, "a");
  EXPECT_TRUE(parsed->tensors[0].shape.empty());
  EXPECT_EQ(parsed->tensors[1].type, StorageType::kF16);
  EXPECT_EQ(parsed->tensors[1].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(parsed->tensors[1].begin + 4, static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(parsed->tensors[2].begin, parsed->tensors[2].end);
  EXPECT_EQ(parsed->metadata.at("format"), "pt");
  EXPECT_EQ(ErrorOf("{}", 0), "OK");
}

TEST(SafetensorsTest, RefusesABadLength) {
  EXPECT_THAT(ErrorOf(std::string("\2\0\0", 3)), HasSubstr("needs 8"));
  EXPECT_THAT(ErrorOf(Le<uint64_t>(100'000'001) + "{}"), HasSubstr("limit is 100000000"));
  EXPECT_THAT(ErrorOf(Le<uint64_t>(UINT64_MAX) + "{}"), HasSubstr("limit is 100000000"));
  EXPECT_THAT(ErrorOf(Le<uint64_t>(3) + "{}"), HasSubstr("header of 3 bytes in a file of 10"));
}

TEST(SafetensorsTest, RefusesBadJson) {
  EXPECT_THAT(ErrorOf("", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(ErrorOf("[]", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(ErrorOf(" {}", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(ErrorOf("{\"a\":", 0), HasSubstr("parse_error"));
  EXPECT_THAT(ErrorOf("{}{}", 0), HasSubstr("parse_error"));
  EXPECT_THAT(ErrorOf(std::string("{}\0\0", 4), 0), HasSubstr("NUL"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":{\"a\":\"\xff\"}}", 0), HasSubstr("UTF-8"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":" + std::string(100000, '['), 0), HasSubstr("an array"));
}

TEST(SafetensorsTest, RefusesWrongKeysAndKinds) {
  EXPECT_THAT(ErrorOf("{\"__metadata__\":{\"a\":1}}", 0), HasSubstr("a number"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":{\"a\":null}}", 0), HasSubstr("null"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":{\"a\":{}}}", 0), HasSubstr("an object"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":\"x\"}", 0), HasSubstr("a string"));
  EXPECT_THAT(ErrorOf("{\"t\":5}", 0), HasSubstr("a number"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F99", "[1]", 0, 4) + "}", 4), HasSubstr("unknown dtype \"F99\""));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[-1]", 0, 4) + "}", 4), HasSubstr("a negative number"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[1.0]", 0, 4) + "}", 4), HasSubstr("a fraction"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[[1]]", 0, 4) + "}", 4), HasSubstr("an array"));
  EXPECT_THAT(ErrorOf("{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), HasSubstr("needs dtype, shape and two"));
  EXPECT_THAT(ErrorOf("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4), HasSubstr("needs dtype"));
  EXPECT_THAT(ErrorOf("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4), HasSubstr("three"));
  EXPECT_THAT(ErrorOf("{\"t\":{\"dtype\":\"F32\",\"x\":[1]}}", 4), HasSubstr("unknown key \"x\""));
}

TEST(SafetensorsTest, RefusesDuplicateKeysOnEveryLevel) {
  const std::string t = Tensor("t", "F32", "[1]", 0, 4);
  EXPECT_THAT(ErrorOf("{" + t + "," + t + "}", 4), HasSubstr("\"t\" twice"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0), HasSubstr("\"k\" twice"));
  EXPECT_THAT(ErrorOf("{\"__metadata__\":{},\"__metadata__\":{}}", 0), HasSubstr("\"__metadata__\" twice"));
  EXPECT_THAT(ErrorOf("{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 0), HasSubstr("\"dtype\" twice"));
}

TEST(SafetensorsTest, RefusesOffsetsThatDoNotTileTheData) {
  const auto two = [](int b0, int e0, int b1, int e1) {
    return "{" + Tensor("a", "U8", "[" + std::to_string(e0 - b0) + "]", b0, e0) + "," +
           Tensor("b", "U8", "[" + std::to_string(e1 - b1) + "]", b1, e1) + "}";
  };
  EXPECT_EQ(ErrorOf(two(0, 4, 4, 8), 8), "OK");
  EXPECT_THAT(ErrorOf(two(0, 4, 3, 8), 8), HasSubstr("must be packed"));  // overlap
  EXPECT_THAT(ErrorOf(two(0, 4, 5, 8), 8), HasSubstr("must be packed"));  // hole
  EXPECT_THAT(ErrorOf(two(1, 4, 4, 8), 8), HasSubstr("must be packed"));  // hole at the start
  EXPECT_THAT(ErrorOf(two(0, 4, 4, 8), 9), HasSubstr("must end together"));
  EXPECT_THAT(ErrorOf(two(0, 4, 4, 8), 7), HasSubstr("must end together"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "U8", "[0]", 4, 3) + "}", 4), HasSubstr("ends before it begins"));
}

TEST(SafetensorsTest, RefusesSizesThatDoNotFitTheShape) {
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[2]", 0, 4) + "}", 4), HasSubstr("has 4 bytes"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F4", "[3]", 0, 2) + "}", 2), HasSubstr("impossible"));
  EXPECT_EQ(ErrorOf("{" + Tensor("t", "F4", "[4]", 0, 2) + "}", 2), "OK");
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[4294967296,4294967296]", 0, 4) + "}", 4), HasSubstr("impossible"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[9223372036854775807,0]", 0, 0) + "}", 0), testing::StrEq("OK"));
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", "[18446744073709551615]", 0, 4) + "}", 4), HasSubstr("past int64"));
  std::string ones = "[1";
  for (int i = 1; i < 65; ++i) ones += ",1";
  EXPECT_THAT(ErrorOf("{" + Tensor("t", "F32", ones + "]", 0, 4) + "}", 4), HasSubstr("more than 64 dimensions"));
}

// Golden: the reference library's own bytes (tests/golden/make_golden_formats.py).
TEST(SafetensorsWriterTest, WritesTheReferenceLibrarysBytes) {
  const std::string golden = ReadAll(Golden("formats_writer.safetensors"));
  const auto set = SafetensorsSet::OpenFile(Golden("formats_writer.safetensors"));
  ASSERT_TRUE(set.ok()) << set.status();
  ASSERT_EQ(set->tensors().size(), 10u);
  SafetensorsWriter writer;
  for (const auto& [name, view] : set->tensors()) {  // in no order: the writer sorts
    writer.Add({name, view.entry->type, view.entry->shape, view.data});
  }
  const auto bytes = writer.Serialize();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, golden);

  TempDir dir;
  ASSERT_TRUE(writer.WriteFile(dir.File("out.safetensors")).ok());
  EXPECT_EQ(ReadAll(dir.File("out.safetensors")), golden);
  EXPECT_EQ(*ListDir(dir.path()), std::vector<std::string>{"out.safetensors"});
}

TEST(SafetensorsWriterTest, RefusesTensorsThatAFileCannotHold) {
  const float data[4] = {};
  const auto error = [&](std::vector<SafetensorsInput> tensors) {
    SafetensorsWriter writer;
    for (SafetensorsInput& tensor : tensors) writer.Add(std::move(tensor));
    const auto bytes = writer.Serialize();
    return bytes.ok() ? "OK" : std::string(bytes.status().message());
  };
  EXPECT_THAT(error({{"a", StorageType::kF32, {1}, data}, {"a", StorageType::kF16, {1}, data}}), HasSubstr("\"a\""));
  EXPECT_THAT(error({{"__metadata__", StorageType::kF32, {1}, data}}), HasSubstr("name of the metadata"));
  EXPECT_THAT(error({{"q", StorageType::kQ4_1, {32}, data}}), HasSubstr("safetensors lacks"));
  EXPECT_THAT(error({{"n", StorageType::kF32, {-1}, data}}), HasSubstr("does not fit its type"));
}

TEST(SafetensorsWriterTest, AFailureLeavesNoFileBehind) {
  TempDir dir;
  const float data = 1;
  SafetensorsWriter writer;
  writer.Add({"t", StorageType::kF32, {1}, &data});
  ASSERT_TRUE(CreateDirs(dir.File("taken/inside")).ok());
  EXPECT_FALSE(writer.WriteFile(dir.File("taken")).ok());  // a folder cannot be replaced by a file
  EXPECT_EQ(*ListDir(dir.path()), std::vector<std::string>{"taken"});
}

class ShardTest : public testing::Test {
 protected:
  void SetUp() override {
    const float values[2] = {1, 2};
    for (int i = 1; i <= 2; ++i) {
      SafetensorsWriter writer;
      writer.Add({"t" + std::to_string(i), StorageType::kF32, {2}, values});
      ASSERT_TRUE(writer.WriteFile(dir_.File("model-0000" + std::to_string(i) + "-of-00002.safetensors")).ok());
    }
  }
  std::string OpenWith(const std::string& index) {
    WriteAll(dir_.File("model.safetensors.index.json"), index);
    const auto set = SafetensorsSet::OpenFolder(dir_.path());
    if (!set.ok()) return std::string(set.status().message());
    EXPECT_EQ(set->files().size(), 3u);
    return set->Find("t1") != nullptr && set->Find("t2") != nullptr ? "OK" : "incomplete";
  }
  TempDir dir_;
};

TEST_F(ShardTest, FollowsTheIndexAndRefusesOneThatLies) {
  const std::string one = "\"model-00001-of-00002.safetensors\"";
  const std::string two = "\"model-00002-of-00002.safetensors\"";
  EXPECT_EQ(OpenWith("{\"metadata\":{},\"weight_map\":{\"t1\":" + one + ",\"t2\":" + two + "}}"), "OK");
  EXPECT_THAT(OpenWith("{\"weight_map\":{\"t1\":" + two + ",\"t2\":" + one + "}}"), HasSubstr("lacks it"));
  EXPECT_THAT(OpenWith("{\"weight_map\":{\"t3\":" + one + "}}"), HasSubstr("lacks it"));
  EXPECT_THAT(OpenWith("{\"weight_map\":{\"t1\":\"../secret\"}}"), HasSubstr("plain file name"));
  EXPECT_THAT(OpenWith("{\"weight_map\":{\"t1\":\"/etc/passwd\"}}"), HasSubstr("plain file name"));
  EXPECT_THAT(OpenWith("{\"weight_map\":{\"t1\":5}}"), HasSubstr("no string"));
  EXPECT_THAT(OpenWith("{}"), HasSubstr("weight_map"));
  EXPECT_THAT(OpenWith("{\"weight_map\":{\"t1\":\"gone.safetensors\"}}"), HasSubstr("gone.safetensors"));
}

TEST_F(ShardTest, AFolderWithoutWeightsSaysSo) {
  const auto set = SafetensorsSet::OpenFolder(dir_.path());
  ASSERT_FALSE(set.ok());
  EXPECT_THAT(set.status().message(), HasSubstr("neither model.safetensors nor"));
}

}  // namespace
}  // namespace longhaul::formats
