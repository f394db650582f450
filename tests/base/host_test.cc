#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>

#include "base/cgroup_memory.h"
#include "base/env.h"
#include "tests/base/test_support.h"

namespace longhaul {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

class CgroupTest : public testing::Test {
 protected:
  void Write(const std::string& group, const std::string& file, const std::string& text) {
    ASSERT_TRUE(CreateDirs(dir_.File(group)).ok());
    ASSERT_TRUE(WriteFileAtomic(JoinPath(dir_.File(group), file), text).ok());
  }
  CgroupMemory Read(const std::string& proc) const { return ReadCgroupMemory(proc, dir_.path()); }
  TempDir dir_;
};

TEST_F(CgroupTest, NoLimits) {
  Write("a/b", "memory.max", "max\n");
  EXPECT_EQ(Read("0::/a/b\n").limit_bytes, kNone);
  EXPECT_EQ(Read("0::/a/b\n").available_bytes, kNone);
  EXPECT_EQ(Read("").limit_bytes, kNone);
  EXPECT_EQ(Read("rubbish\n\n:\n").limit_bytes, kNone);
}

TEST_F(CgroupTest, Version2TakesTheTightestOnTheWayUp) {
  Write("a/b", "memory.max", "9000\n");
  Write("a/b", "memory.current", "1000\n");
  Write("a", "memory.max", "5000\n");
  Write("a", "memory.current", "4500\n");
  Write("a", "memory.stat", "anon 1500\ninactive_file 3000\nactive_file 7\n");
  const CgroupMemory memory = Read("0::/a/b\n");
  EXPECT_EQ(memory.limit_bytes, 5000);
  EXPECT_EQ(memory.available_bytes, 3500);  // 5000 - (4500 - 3000); b alone would leave 8000
}

TEST_F(CgroupTest, Version2InAContainerWhosePathIsNotMounted) {
  Write("", "memory.max", "7000");
  Write("", "memory.current", "8000");  // above the limit while the kernel reclaims
  const CgroupMemory memory = Read("0::/system.slice/container-1\n");
  EXPECT_EQ(memory.limit_bytes, 7000);
  EXPECT_EQ(memory.available_bytes, 0);
}

TEST_F(CgroupTest, Version1) {
  Write("memory/job", "memory.limit_in_bytes", "6000\n");
  Write("memory/job", "memory.usage_in_bytes", "2000\n");
  Write("memory/job", "memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
  Write("memory", "memory.limit_in_bytes", "9223372036854771712\n");
  const CgroupMemory memory = Read("12:cpu,cpuacct:/job\n11:memory:/job\n1:name=systemd:/job\n");
  EXPECT_EQ(memory.limit_bytes, 6000);
  EXPECT_EQ(memory.available_bytes, 4500);
  EXPECT_EQ(Read("12:cpu:/job\n").limit_bytes, kNone);
}

TEST(Host, Facts) {
  EXPECT_GT(HostMemTotalBytes(), 16 << 20);
  EXPECT_GT(HostMemAvailableBytes(), 0);
  EXPECT_FALSE(HostName().empty());
  EXPECT_TRUE(FileExists(JoinPath(ExecutableDir(), "base_test"))) << ExecutableDir();
}

TEST(Host, CpuThreadsFollowTheAffinityMask) {
  EXPECT_GE(HostCpuThreads(), 1);
  const int status = StatusOfForked([] {
    cpu_set_t mask;
    if (::sched_getaffinity(0, sizeof(mask), &mask) != 0) return 100;
    int first = 0;
    while (!CPU_ISSET(first, &mask)) ++first;
    CPU_ZERO(&mask);
    CPU_SET(first, &mask);
    if (::sched_setaffinity(0, sizeof(mask), &mask) != 0) return 101;
    return HostCpuThreads();
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

}  // namespace
}  // namespace longhaul
