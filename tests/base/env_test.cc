#include "base/env.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <numeric>

#include "base/error.h"
#include "base/process.h"
#include "tests/base/test_support.h"

namespace longhaul {
namespace {

using Names = std::vector<std::string>;

void WriteOrFail(const std::string& path, const std::string& bytes) {
  const absl::Status status = WriteFileAtomic(path, bytes);
  ASSERT_TRUE(status.ok()) << status;
}

// In a forked child: files of ours may not grow beyond `bytes`, and the kernel says so by errno, not by a signal.
void LimitFileSize(rlim_t bytes) {
  ::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{bytes, bytes};
  LH_CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
}

TEST(Env, WriteFileAtomicReplaces) {
  const TempDir dir;
  WriteOrFail(dir.File("a"), "one");
  WriteOrFail(dir.File("a"), std::string("t\0wo", 4));
  EXPECT_EQ(*ReadFile(dir.File("a"), 100), std::string("t\0wo", 4));
  EXPECT_EQ(*ListDir(dir.path()), Names{"a"});
}

TEST(Env, WriteFileAtomicLeavesNothingBehindOnFailure) {
  const TempDir dir;
  ASSERT_TRUE(CreateDirs(dir.File("folder/inside")).ok());
  EXPECT_FALSE(WriteFileAtomic(dir.File("folder"), "x").ok());  // the rename fails
  WriteOrFail(dir.File("file"), "old");
  const int status = StatusOfForked([&] {
    LimitFileSize(10);
    return WriteFileAtomic(dir.File("file"), std::string(100, 'x')).ok() ? 1 : 0;  // the write fails half-way
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(*ListDir(dir.path()), (Names{"file", "folder"}));
  EXPECT_EQ(*ReadFile(dir.File("file"), 100), "old");
  EXPECT_EQ(WriteFileAtomic(dir.File("absent/file"), "x").code(), absl::StatusCode::kNotFound);
}

TEST(Env, WriteFileAtomicSkipsLeftovers) {
  const TempDir dir;
  // What a crashed process with our pid (pids repeat across containers and boots) may have left: the next names.
  const std::string path = dir.File("file");
  for (int i = 0; i < 200; ++i) {
    const std::string leftover = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(i);
    ASSERT_TRUE(AppendFile::Open(leftover).ok());
  }
  WriteOrFail(path, "x");
  EXPECT_EQ(*ReadFile(path, 10), "x");
  EXPECT_EQ(ListDir(dir.path())->size(), 201u);
}

TEST(Env, ReadFileLimits) {
  const TempDir dir;
  WriteOrFail(dir.File("ten"), "0123456789");
  WriteOrFail(dir.File("empty"), "");
  EXPECT_EQ(*ReadFile(dir.File("ten"), 10), "0123456789");
  EXPECT_EQ(*ReadFile(dir.File("empty"), 0), "");
  const absl::Status large = ReadFile(dir.File("ten"), 9).status();
  EXPECT_EQ(large.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(large), "FILE_TOO_LARGE");
  EXPECT_EQ(ReadFile(dir.File("absent"), 9).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(ReadFile(dir.path(), 1 << 20).ok());
  // A file whose size the kernel reports as 0.
  EXPECT_FALSE(ReadFile("/proc/self/status", 1 << 20)->empty());
  EXPECT_EQ(ReadFile("/proc/self/status", 5).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Env, ReadFileRange) {
  const TempDir dir;
  WriteOrFail(dir.File("ten"), "0123456789");
  EXPECT_EQ(*ReadFileRange(dir.File("ten"), 0, 4), "0123");
  EXPECT_EQ(*ReadFileRange(dir.File("ten"), 8, int64_t{1} << 60), "89");
  EXPECT_EQ(*ReadFileRange(dir.File("ten"), 10, 4), "");
  EXPECT_EQ(*ReadFileRange(dir.File("ten"), 1000, 4), "");
  EXPECT_EQ(ReadFileRange(dir.File("ten"), -1, 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFileRange(dir.File("ten"), 0, -4).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Env, MappedFile) {
  const TempDir dir;
  WriteOrFail(dir.File("a"), "hello");
  WriteOrFail(dir.File("empty"), "");
  absl::StatusOr<MappedFile> a = MappedFile::Open(dir.File("a"));
  absl::StatusOr<MappedFile> empty = MappedFile::Open(dir.File("empty"));
  ASSERT_TRUE(a.ok() && empty.ok());
  MappedFile moved = *std::move(a);
  EXPECT_EQ(moved.view(), "hello");
  EXPECT_EQ(empty->view(), "");
  *empty = std::move(moved);
  EXPECT_EQ(empty->view(), "hello");
  EXPECT_EQ(moved.size(), 0u);
  EXPECT_FALSE(MappedFile::Open(dir.path()).ok());
  EXPECT_EQ(MappedFile::Open(dir.File("absent")).status().code(), absl::StatusCode::kNotFound);
}

TEST(Env, MappedFileGivesItsMemoryBack) {
  constexpr size_t kBytes = size_t{32} << 20;
  const TempDir dir;
  WriteOrFail(dir.File("large"), std::string(kBytes, 'x'));
  const absl::StatusOr<MappedFile> file = MappedFile::Open(dir.File("large"));
  ASSERT_TRUE(file.ok());
  const auto sum = [&] { return std::accumulate(file->data(), file->data() + kBytes, size_t{0}); };
  EXPECT_EQ(sum(), kBytes * 'x');
  const int64_t before = ProcessRssBytes(::getpid(), false);
  file->Release(file->data() + 1, kBytes - 1);
  EXPECT_LT(ProcessRssBytes(::getpid(), false), before - static_cast<int64_t>(kBytes / 2));
  EXPECT_EQ(sum(), kBytes * 'x') << "the file has them still";
}

TEST(Env, AppendFile) {
  const TempDir dir;
  const std::string path = dir.File("log");
  {
    absl::StatusOr<AppendFile> file = AppendFile::Open(path);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->Append("abc").ok());
    ASSERT_TRUE(file->Append("").ok());
    EXPECT_EQ(*ReadFile(path, 100), "abc");  // unbuffered
    ASSERT_TRUE(file->Append("def").ok());
    ASSERT_TRUE(file->Sync().ok());
    EXPECT_EQ(file->size(), 6);
  }
  absl::StatusOr<AppendFile> cut = AppendFile::Open(path, 4);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->size(), 4);
  AppendFile moved = *std::move(cut);
  ASSERT_TRUE(moved.Append("X").ok());
  EXPECT_EQ(*ReadFile(path, 100), "abcdX");
  EXPECT_EQ(*FileSize(path), 5);
  EXPECT_EQ(AppendFile::Open(path, 6).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(*ReadFile(path, 100), "abcdX");
}

TEST(Env, AppendToAFullDisk) {
  absl::StatusOr<AppendFile> file = AppendFile::Open("/dev/full");
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status status = file->Append("x");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(status), "DISK_FULL");
  EXPECT_EQ(file->size(), 0);
}

TEST(Env, AppendTakesATornTailBack) {
  const TempDir dir;
  const int status = StatusOfForked([&] {
    LimitFileSize(10);
    absl::StatusOr<AppendFile> file = AppendFile::Open(dir.File("log"));
    if (!file.ok() || !file->Append("sixxxx").ok()) return 1;
    if (file->Append("eightttt").ok()) return 2;  // the kernel takes four of the eight
    if (file->size() != 6) return 3;
    return file->Append("four").ok() ? 0 : 4;
  });
  EXPECT_EQ(status, 0) << WEXITSTATUS(status);
  EXPECT_EQ(*ReadFile(dir.File("log"), 100), "sixxxxfour");
}

TEST(Env, FileLockBetweenProcesses) {
  const TempDir dir;
  const std::string path = dir.File("lock");
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t holder = ::fork();
  ASSERT_GE(holder, 0);
  if (holder == 0) {
    const absl::StatusOr<FileLock> lock = FileLock::Acquire(path);
    const char said = lock.ok() ? 'y' : 'n';
    if (::write(ready[1], &said, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char said = 0;
  ASSERT_EQ(::read(ready[0], &said, 1), 1);
  EXPECT_EQ(said, 'y');
  const absl::Status held = FileLock::Acquire(path).status();
  EXPECT_EQ(held.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(held), "LOCKED");
  ::kill(holder, SIGKILL);
  ASSERT_EQ(::waitpid(holder, nullptr, 0), holder);
  {
    absl::StatusOr<FileLock> mine = FileLock::Acquire(path);
    ASSERT_TRUE(mine.ok()) << mine.status();
    const FileLock moved = *std::move(mine);
    EXPECT_FALSE(FileLock::Acquire(path).ok());
  }
  EXPECT_TRUE(FileLock::Acquire(path).ok());
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(Env, Folders) {
  const TempDir dir;
  ASSERT_TRUE(CreateDirs(dir.File("x/y/z/")).ok());
  ASSERT_TRUE(CreateDirs(dir.File("x/y")).ok());
  EXPECT_TRUE(IsDirectory(dir.File("x/y/z")));
  WriteOrFail(dir.File("x/file"), "1");
  EXPECT_FALSE(IsDirectory(dir.File("x/file")));
  EXPECT_TRUE(FileExists(dir.File("x/file")));
  EXPECT_FALSE(FileExists(dir.File("absent")));
  EXPECT_FALSE(CreateDirs(dir.File("x/file")).ok());
  EXPECT_FALSE(CreateDirs(dir.File("x/file/below")).ok());
  EXPECT_FALSE(CreateDirs("").ok());
  EXPECT_EQ(*ListDir(dir.File("x")), (Names{"file", "y"}));
  EXPECT_EQ(ListDir(dir.File("absent")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(SyncFile(dir.File("x/file")).ok());
  EXPECT_TRUE(SyncDir(dir.File("x")).ok());
  EXPECT_FALSE(SyncDir(dir.File("x/file")).ok());
  EXPECT_TRUE(RenameFile(dir.File("x/file"), dir.File("x/y/moved")).ok());
  EXPECT_EQ(*ReadFile(dir.File("x/y/moved"), 10), "1");
  EXPECT_EQ(RenameFile(dir.File("absent"), dir.File("b")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(FileSize(dir.File("absent")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_GT(*DiskFreeBytes(dir.path()), 0);
  EXPECT_FALSE(DiskFreeBytes(dir.File("absent")).ok());
}

TEST(Env, Removing) {
  const TempDir dir;
  ASSERT_TRUE(CreateDirs(dir.File("kept")).ok());
  WriteOrFail(dir.File("kept/file"), "1");
  ASSERT_TRUE(CreateDirs(dir.File("tree/deep/er")).ok());
  WriteOrFail(dir.File("tree/deep/file"), "1");
  ASSERT_EQ(::symlink(dir.File("kept").c_str(), dir.File("tree/deep/link").c_str()), 0);
  ASSERT_EQ(::symlink(dir.File("kept").c_str(), dir.File("link").c_str()), 0);
  EXPECT_TRUE(RemoveTree(dir.File("tree")).ok());
  EXPECT_TRUE(RemoveTree(dir.File("link/")).ok());
  EXPECT_TRUE(RemoveTree(dir.File("absent")).ok());
  EXPECT_FALSE(RemoveTree("").ok());
  EXPECT_EQ(*ListDir(dir.path()), Names{"kept"});
  EXPECT_TRUE(FileExists(dir.File("kept/file")));
  EXPECT_FALSE(RemoveFile(dir.File("kept")).ok());
  EXPECT_TRUE(RemoveFile(dir.File("kept/file")).ok());
  EXPECT_TRUE(RemoveFile(dir.File("kept/file")).ok());
  EXPECT_TRUE(ListDir(dir.File("kept"))->empty());
}

TEST(Env, JoinPath) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("a", "/b"), "a/b");
  EXPECT_EQ(JoinPath("/", "b"), "/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(JoinPath("", "/b"), "/b");
  EXPECT_EQ(JoinPath("a", ""), "a");
}

}  // namespace
}  // namespace longhaul
