#include <gtest/gtest.h>

#include <cstdint>
#include <new>

#include "kernels/cpu/cpu_exec.h"

namespace longhaul::kernels {
namespace {

// Thrown, the trainer calls it HOST_OOM, which is not tried again; a failed check would be a crash, which is.
TEST(GrowingBuffer, WithoutMemoryItThrowsAndIsEmpty) {
  GrowingBuffer buffer;
  ASSERT_NE(buffer.Reserve(100), nullptr);
  EXPECT_THROW(buffer.Reserve(int64_t{1} << 60), std::bad_alloc);
  EXPECT_EQ(buffer.as<char>(), nullptr);
  char* const data = static_cast<char*>(buffer.Reserve(10));
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
  data[9] = 1;
}

}  // namespace
}  // namespace longhaul::kernels
