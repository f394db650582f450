// The one seam to the operating system's files. Errors name the path and the errno text; ENOSPC is
// RESOURCE_EXHAUSTED with reason DISK_FULL, ENOENT NOT_FOUND, EACCES and EROFS PERMISSION_DENIED.
// Thread-safe: no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longhaul {

// A read-only mapping of a whole file. Movable; unmapped on destruction.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view view() const { return {reinterpret_cast<const char*>(data_), size_}; }
  // The process's memory for these bytes goes back, but for parts of pages at their ends; the file has them still.
  void Release(const uint8_t* begin, size_t bytes) const;

 private:
  MappedFile(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// An append-only file. Unbuffered: when Append returns, the bytes are with the kernel. Sync makes them durable.
class AppendFile {
 public:
  // Opens at the end, creating the file where it is absent. `truncate_to` >= 0 cuts it to that size first.
  static absl::StatusOr<AppendFile> Open(const std::string& path, int64_t truncate_to = -1);
  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&& other) noexcept;
  ~AppendFile();
  absl::Status Append(std::string_view bytes);
  absl::Status Sync();
  int64_t size() const { return size_; }

 private:
  AppendFile(int fd, std::string path, int64_t size) : fd_(fd), path_(std::move(path)), size_(size) {}
  int fd_ = -1;
  std::string path_;
  int64_t size_ = 0;
};

// Holds flock(LOCK_EX) on a file for its life.
class FileLock {
 public:
  // FAILED_PRECONDITION, reason LOCKED, where another process holds it.
  static absl::StatusOr<FileLock> Acquire(const std::string& path);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

// RESOURCE_EXHAUSTED where the file is larger than max_bytes.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);
// Reads up to `length` bytes at `offset`; fewer at the end of the file.
absl::StatusOr<std::string> ReadFileRange(const std::string& path, int64_t offset, int64_t length);
// Durable replace: sibling temporary file, fsync, rename, fsync of the folder.
absl::Status WriteFileAtomic(const std::string& path, std::string_view bytes);
absl::Status RenameFile(const std::string& from, const std::string& to);  // and fsyncs the target's folder
absl::Status SyncFile(const std::string& path);
absl::Status SyncDir(const std::string& path);
absl::Status CreateDirs(const std::string& path);
absl::Status RemoveFile(const std::string& path);  // absent is OK
absl::Status RemoveTree(const std::string& path);  // absent is OK; never follows links
bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);
absl::StatusOr<int64_t> FileSize(const std::string& path);
absl::StatusOr<int64_t> FileModifiedNanos(const std::string& path);  // since 1970
absl::Status TouchFile(const std::string& path);                     // it was modified now
// Size, modification time and inode as text: another one once the file has been written to or replaced.
absl::StatusOr<std::string> FileStamp(const std::string& path);
// Names (no path), sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListDir(const std::string& path);
absl::StatusOr<int64_t> DiskFreeBytes(const std::string& path);
absl::StatusOr<int64_t> DiskSizeBytes(const std::string& path);
std::string JoinPath(std::string_view a, std::string_view b);
// The folder of the running executable.
std::string ExecutableDir();

// Host facts. MemAvailable is bounded by the cgroup's limit where there is one.
int64_t HostMemTotalBytes();
int64_t HostMemAvailableBytes();
int HostCpuThreads();  // what the affinity mask allows
std::string HostName();

}  // namespace longhaul
