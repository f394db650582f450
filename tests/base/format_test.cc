#include "base/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"

namespace longhaul {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

TEST(Format, Bytes) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.00 KiB");
  EXPECT_EQ(FormatBytes((5 << 28)), "1.25 GiB");
  EXPECT_EQ(FormatBytes((1 << 20) - 1), "1.00 MiB");
  EXPECT_EQ(FormatBytes(-2048), "-2.00 KiB");
  EXPECT_EQ(FormatBytes(kMax), "8.00 EiB");
  EXPECT_EQ(FormatBytes(kMin), "-8.00 EiB");
}

TEST(Format, Duration) {
  EXPECT_EQ(FormatDuration(0), "0.0s");
  EXPECT_EQ(FormatDuration(0.8), "0.8s");
  EXPECT_EQ(FormatDuration(59.94), "59.9s");
  EXPECT_EQ(FormatDuration(59.96), "1m 00s");
  EXPECT_EQ(FormatDuration(247), "4m 07s");
  EXPECT_EQ(FormatDuration(3599.7), "1h 00m");
  EXPECT_EQ(FormatDuration(7380), "2h 03m");
  EXPECT_EQ(FormatDuration(360'000), "100h 00m");
  EXPECT_EQ(FormatDuration(3'600'000), "41 days");
  EXPECT_EQ(FormatDuration(1e12), "31709 years");
  EXPECT_EQ(FormatDuration(-247), "-4m 07s");
  EXPECT_EQ(FormatDuration(-0.01), "0.0s");
  EXPECT_EQ(FormatDuration(std::nan("")), "unknown");
  EXPECT_EQ(FormatDuration(std::numeric_limits<double>::infinity()), "unknown");
}

TEST(Format, Count) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(12'345), "12,345");
  EXPECT_EQ(FormatCount(-100), "-100");
  EXPECT_EQ(FormatCount(-123'456), "-123,456");
  EXPECT_EQ(FormatCount(kMin), "-9,223,372,036,854,775,808");
}

TEST(Format, Timestamp) {
  EXPECT_EQ(FormatTimestamp(0), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(FormatTimestamp(1'795'428'000'123'999), "2026-11-23T10:00:00.123Z");
  EXPECT_EQ(FormatTimestamp(951'782'399'999'000), "2000-02-28T23:59:59.999Z");
  EXPECT_EQ(FormatTimestamp(951'782'400'000'000), "2000-02-29T00:00:00.000Z");
  EXPECT_EQ(FormatTimestamp(-1), "1969-12-31T23:59:59.999Z");
}

TEST(Format, ParseBytes) {
  const auto expect = [](const std::string& text, int64_t bytes) {
    const absl::StatusOr<int64_t> parsed = ParseBytes(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  };
  expect("0", 0);
  expect("1000", 1000);
  expect("1000B", 1000);
  expect("8GiB", int64_t{8} << 30);
  expect("512 MiB", 512 << 20);
  expect("  512 mib ", 512 << 20);
  expect("1.5GiB", int64_t{3} << 29);
  expect("0.5 KiB", 512);
  expect("1.1 kB", 1100);
  expect("2 GB", 2'000'000'000);
  expect("9223372036854775807", kMax);
  expect("7EiB", int64_t{7} << 60);
  expect("7.5 EiB", (int64_t{7} << 60) + (int64_t{1} << 59));
}

TEST(Format, ParseBytesRefuses) {
  const std::vector<std::string> bad = {"",
                                        " ",
                                        "GiB",
                                        "-1",
                                        "+1",
                                        "8G",
                                        "8 Gi",
                                        "8XiB",
                                        "8GiBs",
                                        "1..5",
                                        "1.GiB",
                                        ".5GiB",
                                        "1.5",
                                        "1.5B",
                                        "0x10",
                                        "1e3",
                                        "8iB",
                                        "1,000",
                                        "8 EiB",
                                        "8EiB",
                                        "9223372036854775808",
                                        "8GiB 8",
                                        "1 0GiB",
                                        "nan",
                                        "1.5 GiiB",
                                        "7.99999999999999999999EiB9"};
  for (const std::string& text : bad) {
    const absl::StatusOr<int64_t> parsed = ParseBytes(text);
    EXPECT_FALSE(parsed.ok()) << "'" << text << "' gave " << *parsed;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ErrorReason(parsed.status()), "INVALID_SIZE") << text;
  }
  // The fraction alone may carry a size over the edge.
  EXPECT_FALSE(ParseBytes("7.99999999999999999999999 EiB").ok());
}

TEST(Format, NearestWord) {
  const std::vector<std::string> words = {"learning_rate", "lora_rank", "lora_alpha", "batch_size", "epochs", "lr"};
  const auto nearest = [&](const std::string& word) {
    return NearestWord(word, words.data(), words.data() + words.size());
  };
  EXPECT_EQ(nearest("learnin_rate"), "learning_rate");
  EXPECT_EQ(nearest("lora_rnak"), "lora_rank");
  EXPECT_EQ(nearest("batchsize"), "batch_size");
  EXPECT_EQ(nearest("epoch"), "epochs");
  EXPECT_EQ(nearest("epochs"), "epochs");
  EXPECT_EQ(nearest("rl"), "lr");
  EXPECT_EQ(nearest("xy"), "");
  EXPECT_EQ(nearest("x"), "");
  EXPECT_EQ(nearest("warmup_ratio"), "");
  EXPECT_EQ(nearest(""), "");
  EXPECT_EQ(nearest(std::string(100'000, 'l')), "");
  EXPECT_EQ(NearestWord("epochs", nullptr, nullptr), "");
}

}  // namespace
}  // namespace longhaul
