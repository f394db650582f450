#include "worker/formats/json_strict.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

std::string StrictErrorOf(std::string_view text) {
  const auto parsed = ParseJsonStrict(text, "conf.json");
  return parsed.ok() ? "OK" : std::string(parsed.status().message());
}

TEST(JsonStrictTest, ReadsWhatJsonAllows) {
  EXPECT_EQ(StrictErrorOf("{\"a\": [1, {\"a\": null}], \"b\": \"\xc3\xa9\"}"), "OK");
  EXPECT_EQ(StrictErrorOf(" [] \n"), "OK");
}

TEST(JsonStrictTest, RefusesTheRestAndNamesTheFile) {
  EXPECT_THAT(StrictErrorOf("{\"a\": 1, \"a\": 2}"), HasSubstr("conf.json: has the key \"a\" twice"));
  EXPECT_THAT(StrictErrorOf("[{\"b\": {\"k\": 1, \"k\": 1}}]"), HasSubstr("\"k\" twice"));
  EXPECT_THAT(StrictErrorOf(std::string(65, '[') + std::string(65, ']')), HasSubstr("deeper than 64"));
  EXPECT_EQ(StrictErrorOf(std::string(64, '[') + std::string(64, ']')), "OK");
  EXPECT_THAT(StrictErrorOf(std::string("{}\0{}", 5)), HasSubstr("byte 2 is NUL"));
  EXPECT_THAT(StrictErrorOf("\xef\xbb\xbf{}"), HasSubstr("byte-order mark"));
  EXPECT_THAT(StrictErrorOf("{} x"), HasSubstr("not valid JSON"));
  EXPECT_THAT(StrictErrorOf("[\"\xff\"]"), HasSubstr("not valid JSON"));
  EXPECT_THAT(StrictErrorOf(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(StrictErrorOf("[1e999]"), HasSubstr("not valid JSON"));
}

TEST(JsonStrictTest, AMillionBracketsAreRefusedWithoutRecursion) {
  EXPECT_THAT(StrictErrorOf(std::string(1'000'000, '[')), HasSubstr("deeper than 64"));
}

// Expected: Python's repr of the same doubles.
TEST(PythonFloatTest, WritesWhatReprWrites) {
  EXPECT_EQ(PythonFloat(0.0), "0.0");
  EXPECT_EQ(PythonFloat(-0.0), "-0.0");
  EXPECT_EQ(PythonFloat(1.0), "1.0");
  EXPECT_EQ(PythonFloat(0.05), "0.05");
  EXPECT_EQ(PythonFloat(0.0001), "0.0001");
  EXPECT_EQ(PythonFloat(0.00001), "1e-05");
  EXPECT_EQ(PythonFloat(-1.25e-7), "-1.25e-07");
  EXPECT_EQ(PythonFloat(123456.789), "123456.789");
  EXPECT_EQ(PythonFloat(1e15), "1000000000000000.0");
  EXPECT_EQ(PythonFloat(1e16), "1e+16");
  EXPECT_EQ(PythonFloat(static_cast<double>(0.1f)), "0.10000000149011612");
  EXPECT_EQ(PythonFloat(5e-324), "5e-324");
}

}  // namespace
}  // namespace longhaul::formats
