#include "kernels/arena.h"

#include "base/error.h"
#include "base/units.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

TEST(ArenaTest, CarvesRegionsByName) {
  auto arena = Arena::CreateHost(4096, {{"x", 0, 1024}, {"y", 1024, 3072}, {"overlay", 512, 64}});
  ASSERT_TRUE(arena.ok());
  EXPECT_TRUE((*arena)->Has("x"));
  EXPECT_FALSE((*arena)->Has("z"));
  EXPECT_EQ((*arena)->RegionBytes("y"), 3072);
  EXPECT_EQ(static_cast<char*>((*arena)->Get("y")) - static_cast<char*>((*arena)->Get("x")), 1024);
  EXPECT_EQ(static_cast<char*>((*arena)->Get("overlay")) - static_cast<char*>((*arena)->Get("x")), 512);
  const Tensor matrix = (*arena)->Matrix("y", DType::kF32, 3, 64, 1024);
  EXPECT_EQ(matrix.data, static_cast<char*>((*arena)->Get("y")) + 1024);
  EXPECT_EQ(matrix.stride, 64);
  EXPECT_EQ((*arena)->bytes(), 4096);
}

TEST(ArenaDeathTest, WhatThePlanDoesNotNameCannotBeHad) {
  auto arena = Arena::CreateHost(4096, {{"x", 0, 1024}});
  ASSERT_TRUE(arena.ok());
  EXPECT_DEATH((*arena)->Get("z"), "names no region z");
  EXPECT_DEATH((*arena)->Matrix("x", DType::kF32, 1, 257), "1028 bytes");
  EXPECT_DEATH((*arena)->Matrix("x", DType::kF32, 1, 256, 4), "1024 bytes at 4");
  EXPECT_DEATH((void)Arena::CreateHost(4096, {{"x", 4032, 65}}), "x");
  EXPECT_DEATH((void)Arena::CreateHost(4096, {{"x", 0, 64}, {"x", 64, 64}}), "two regions");
}

TEST(ArenaTest, HighWaterIsWhatWasTouched) {
  auto arena = Arena::CreateHost(16 * kMiB, {{"low", 0, 8 * kMiB}, {"high", 8 * kMiB, 8 * kMiB}});
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ((*arena)->high_water_bytes(), 0);
  std::memset((*arena)->Get("low"), 1, 8 * kMiB);
  EXPECT_EQ((*arena)->high_water_bytes(), 8 * kMiB);
  std::memset((*arena)->Get("high"), 1, 8 * kMiB);
  EXPECT_EQ((*arena)->high_water_bytes(), (*arena)->bytes());
}

TEST(ArenaTest, CountsAnUnevenEnd) {
  auto arena = Arena::CreateHost(4096 + 100, {{"all", 0, 4096 + 100}});
  ASSERT_TRUE(arena.ok());
  std::memset((*arena)->Get("all"), 1, 4096 + 100);
  EXPECT_EQ((*arena)->high_water_bytes(), 4096 + 100);
}

TEST(ArenaTest, TooMuchIsAnErrorNotACrash) {
  const auto arena = Arena::CreateHost(int64_t{1} << 60, {});
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(arena.status()), "HOST_OOM");
}

}  // namespace
}  // namespace longhaul::kernels
