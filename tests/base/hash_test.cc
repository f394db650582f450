#include "base/hash.h"

#include <gtest/gtest.h>

#include "base/crc32c_portable.h"
#include "base/env.h"
#include "tests/base/test_support.h"

namespace longhaul {
namespace {

// FIPS 180-2's examples.
constexpr char kEmptySha[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbcSha[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kMillionSha[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256, KnownVectors) {
  EXPECT_EQ(Sha256Hex(""), kEmptySha);
  EXPECT_EQ(Sha256Hex("abc"), kAbcSha);
  Sha256 hash;
  for (int i = 0; i < 1000; ++i) hash.Update(std::string(1000, 'a'));
  EXPECT_EQ(hash.HexDigest(), kMillionSha);
}

TEST(Sha256, OfFile) {
  const TempDir dir;
  // More than one chunk, and not a multiple of it.
  const std::string bytes(3'000'001, 'x');
  ASSERT_TRUE(WriteFileAtomic(dir.File("big"), bytes).ok());
  ASSERT_TRUE(WriteFileAtomic(dir.File("empty"), "").ok());
  EXPECT_EQ(*Sha256HexOfFile(dir.File("big")), Sha256Hex(bytes));
  EXPECT_EQ(*Sha256HexOfFile(dir.File("empty")), kEmptySha);
  EXPECT_EQ(Sha256HexOfFile(dir.File("absent")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Sha256HexOfFile(dir.path()).ok());
}

TEST(Sha256, IsHex) {
  EXPECT_TRUE(IsSha256Hex(kAbcSha));
  EXPECT_FALSE(IsSha256Hex(std::string(kAbcSha).substr(1)));
  EXPECT_FALSE(IsSha256Hex(std::string(kAbcSha) + "0"));
  EXPECT_FALSE(IsSha256Hex(std::string(64, 'A')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a') + "/"));
  EXPECT_FALSE(IsSha256Hex(""));
}

uint32_t BitwiseCrc(std::string_view bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

// RFC 3720, appendix B.4.
TEST(Crc32c, KnownVectors) {
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  for (const auto crc : {&Crc32c, &Crc32cPortable}) {
    EXPECT_EQ(crc("123456789", 0), 0xE3069283u);
    EXPECT_EQ(crc("", 0), 0u);
    EXPECT_EQ(crc(std::string(32, '\0'), 0), 0x8A9136AAu);
    EXPECT_EQ(crc(std::string(32, '\xff'), 0), 0x62A8AB43u);
    EXPECT_EQ(crc(ascending, 0), 0x46DD794Eu);
  }
}

TEST(Crc32c, BothImplementationsAtEveryLengthAndAlignment) {
  std::string bytes;
  for (int i = 0; i < 128; ++i) bytes += static_cast<char>(i * 37 + 11);
  for (size_t start = 0; start < 9; ++start) {
    for (size_t length = 0; start + length <= bytes.size(); ++length) {
      const std::string_view part = std::string_view(bytes).substr(start, length);
      const uint32_t expected = BitwiseCrc(part);
      ASSERT_EQ(Crc32c(part), expected) << start << " " << length;
      ASSERT_EQ(Crc32cPortable(part), expected) << start << " " << length;
    }
  }
}

TEST(Crc32c, SeedContinues) {
  const std::string text = "the quick brown fox jumps over the lazy dog";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Crc32c(text.substr(cut), Crc32c(text.substr(0, cut))), Crc32c(text));
    EXPECT_EQ(Crc32cPortable(text.substr(cut), Crc32cPortable(text.substr(0, cut))), Crc32c(text));
  }
}

}  // namespace
}  // namespace longhaul
