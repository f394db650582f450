#include "worker/attempt/stderr_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/env.h"
#include "base/unique_fd.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::attempt {
namespace {

void WriteAll(int fd, const std::string& bytes) {
  ASSERT_EQ(::write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
}

// Descriptor 2 becomes the folder's stderr.log for the life of this.
class StderrIsLog {
 public:
  explicit StderrIsLog(const AttemptDir& dir) : saved_(::dup(STDERR_FILENO)) {
    UniqueFd fd(::open(dir.StderrPath().c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644));
    ::dup2(fd.get(), STDERR_FILENO);
  }
  ~StderrIsLog() { ::dup2(saved_.get(), STDERR_FILENO); }

 private:
  UniqueFd saved_;
};

std::string ReadStream(const AttemptDir& dir, int64_t offset) {
  std::string all;
  while (true) {
    const auto chunk = ReadStderr(dir, offset, 7);
    EXPECT_TRUE(chunk.ok()) << chunk.status();
    if (!chunk.ok() || chunk->data.empty()) return all;
    EXPECT_EQ(chunk->offset, offset);
    all += chunk->data;
    offset += static_cast<int64_t>(chunk->data.size());
  }
}

TEST(StderrLogTest, RotationKeepsTheStreamsOffsets) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  StderrIsLog redirect(dir);
  WriteAll(STDERR_FILENO, "0123456789");
  EXPECT_EQ(ReadStream(dir, 0), "0123456789");
  ASSERT_TRUE(RotateStderrIfLarge(dir, 100).ok());
  EXPECT_EQ(*FileSize(dir.StderrPath()), 10);  // not large
  ASSERT_TRUE(RotateStderrIfLarge(dir, 10).ok());
  EXPECT_EQ(*FileSize(dir.StderrPath()), 0);
  WriteAll(STDERR_FILENO, "abcdefghijkl");
  EXPECT_EQ(ReadStream(dir, 0), "0123456789abcdefghijkl");
  EXPECT_EQ(ReadStream(dir, 12), "cdefghijkl");
  ASSERT_TRUE(RotateStderrIfLarge(dir, 10).ok());
  WriteAll(STDERR_FILENO, "XYZ");
  // The first ten bytes are gone: a reader that asks for them is told where what is left begins.
  const auto chunk = ReadStderr(dir, 3, 100);
  ASSERT_TRUE(chunk.ok());
  EXPECT_EQ(chunk->offset, 10);
  EXPECT_EQ(chunk->data, "abcdefghijkl");
  EXPECT_EQ(ReadStream(dir, 10), "abcdefghijklXYZ");
  EXPECT_EQ(StderrTail(dir, 5), "klXYZ");
  EXPECT_EQ(StderrTail(dir, 2), "YZ");
  EXPECT_EQ(StderrTail(dir, 1000), "abcdefghijklXYZ");
}

TEST(StderrLogTest, LeavesAnotherStderrAlone) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  ASSERT_TRUE(WriteFileAtomic(dir.StderrPath(), "0123456789").ok());
  ASSERT_TRUE(RotateStderrIfLarge(dir, 1).ok());
  EXPECT_EQ(*ListDir(temp.path()), std::vector<std::string>{"stderr.log"});
}

TEST(StderrLogTest, TailIsUtf8WhateverTheLogIs) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  EXPECT_EQ(StderrTail(dir, 10), "");
  ASSERT_TRUE(WriteFileAtomic(dir.StderrPath(), "caf\xc3\xa9").ok());
  EXPECT_EQ(StderrTail(dir, 5), "caf\xc3\xa9");
  EXPECT_EQ(StderrTail(dir, 1), "");  // half a character
  ASSERT_TRUE(WriteFileAtomic(dir.StderrPath(), std::string("a\xff\xc0\xaf\xed\xa0\x80"
                                                            "b\0c",
                                                            10))
                  .ok());
  EXPECT_EQ(StderrTail(dir, 100), "a??????b?c");
}

}  // namespace
}  // namespace longhaul::attempt
