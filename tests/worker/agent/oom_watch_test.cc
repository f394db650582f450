#include "worker/agent/oom_watch.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::agent {
namespace {

TEST(OomWatchTest, ReadsBothKindsOfGroups) {
  TempDir root;
  ASSERT_TRUE(CreateDirs(root.At("a/b")).ok());
  ASSERT_TRUE(
      WriteFileAtomic(root.At("a/b/memory.events"), "low 0\nhigh 0\nmax 4\noom 2\noom_kill 3\noom_group_kill 0\n")
          .ok());
  EXPECT_EQ(ReadOomKills("0::/a/b\n", root.path(), ""), 3);
  ASSERT_TRUE(CreateDirs(root.At("memory/c")).ok());
  ASSERT_TRUE(
      WriteFileAtomic(root.At("memory/c/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n").ok());
  EXPECT_EQ(ReadOomKills("12:cpu,memory:/c\n1:name=systemd:/x\n", root.path(), ""), 5);
  EXPECT_EQ(ReadOomKills("", root.path(), ""), 0);
  EXPECT_EQ(ReadOomKills("0::/absent\nnonsense", root.path(), ""), 0);
  ASSERT_TRUE(WriteFileAtomic(root.At("a/b/memory.events"), "oom_kill\n").ok());
  EXPECT_EQ(ReadOomKills("0::/a/b\n", root.path(), ""), 0);
}

TEST(OomWatchTest, WithoutAGroupsCounterTheHostsIsRead) {
  TempDir root;
  const std::string vmstat = "nr_free_pages 10\noom_kill 7\nballoon_inflate 0\n";
  EXPECT_EQ(ReadOomKills("0::/\n", root.path(), vmstat), 7);
  // Of the group alone, where it counts: others' trainers are not ours.
  ASSERT_TRUE(CreateDirs(root.At("a")).ok());
  ASSERT_TRUE(WriteFileAtomic(root.At("a/memory.events"), "oom 0\noom_kill 0\n").ok());
  EXPECT_EQ(ReadOomKills("0::/a\n", root.path(), vmstat), 0);
}

}  // namespace
}  // namespace longhaul::agent
