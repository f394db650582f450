#include "base/env.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <system_error>
#include <utility>

#include "base/disk_seam.h"
#include "base/errno_status.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace longhaul {
namespace {

constexpr size_t kReadChunkBytes = 64 << 10;

// Repeats a system call that a signal interrupted.
template <typename Call>
auto Retry(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

absl::StatusOr<UniqueFd> OpenFd(const std::string& path, int flags, mode_t mode = 0644) {
  const int fd = Retry([&] { return ::open(path.c_str(), flags | O_CLOEXEC, mode); });
  if (fd < 0) return ErrnoStatus("open", path, errno);
  return UniqueFd(fd);
}

absl::StatusOr<struct stat> StatFd(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus("stat", path, errno);
  return info;
}

// What the seam refuses fails as the system call would.
absl::Status AskSeam(const std::string& action, const DiskChange& change) {
  const int error_number = AskDiskSeam(change);
  return error_number == 0 ? absl::OkStatus() : ErrnoStatus(action, std::string(change.path), error_number);
}

absl::Status SyncFd(int fd, const std::string& path) {
  LH_RETURN_IF_ERROR(AskSeam("sync", {.kind = DiskChange::Kind::kSyncFile, .path = path}));
  if (Retry([&] { return ::fsync(fd); }) != 0) return ErrnoStatus("sync", path, errno);
  return absl::OkStatus();
}

// Bytes written; fewer than asked only with errno set.
size_t WriteAll(int fd, std::string_view bytes) {
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t n = Retry([&] { return ::write(fd, bytes.data() + written, bytes.size() - written); });
    if (n < 0) break;
    written += static_cast<size_t>(n);
  }
  return written;
}

std::string ParentDir(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

struct TempFile {
  UniqueFd fd;
  std::string path;
};

// Process id and counter make the name ours; O_EXCL guards against leftovers and against containers that share a
// volume but not their process ids.
absl::StatusOr<TempFile> CreateSibling(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  for (;;) {
    std::string temp = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1));
    LH_RETURN_IF_ERROR(AskSeam("create", {.kind = DiskChange::Kind::kCreate, .path = temp}));
    const int fd = Retry([&] { return ::open(temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644); });
    if (fd >= 0) return TempFile{UniqueFd(fd), std::move(temp)};
    if (errno != EEXIST) return ErrnoStatus("create", temp, errno);
  }
}

absl::Status FillAndRename(TempFile& temp, const std::string& path, std::string_view bytes) {
  LH_RETURN_IF_ERROR(AskSeam("write", {.kind = DiskChange::Kind::kWrite, .path = temp.path, .bytes = bytes}));
  if (WriteAll(temp.fd.get(), bytes) != bytes.size()) return ErrnoStatus("write", temp.path, errno);
  LH_RETURN_IF_ERROR(SyncFd(temp.fd.get(), temp.path));
  if (!temp.fd.Reset()) return ErrnoStatus("close", temp.path, errno);
  LH_RETURN_IF_ERROR(AskSeam("replace", {.kind = DiskChange::Kind::kRename, .path = temp.path, .to = path}));
  if (::rename(temp.path.c_str(), path.c_str()) != 0) return ErrnoStatus("replace", path, errno);
  return absl::OkStatus();
}

// Network file systems say 8 EiB, which no signed number has and no report may have.
int64_t DiskBytes(uint64_t blocks, uint64_t block_bytes) {
  constexpr auto kMost = static_cast<uint64_t>(limits::kMaxReportedCount);
  return static_cast<int64_t>(block_bytes > 0 && blocks > kMost / block_bytes ? kMost : blocks * block_bytes);
}

absl::StatusOr<struct statvfs> StatDisk(const std::string& path) {
  struct statvfs info {};
  if (Retry([&] { return ::statvfs(path.c_str(), &info); }) != 0) {
    return ErrnoStatus("stat file system of", path, errno);
  }
  return info;
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_RDONLY));
  LH_ASSIGN_OR_RETURN(const struct stat info, StatFd(fd.get(), path));
  if (!S_ISREG(info.st_mode)) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "IO_ERROR", "cannot map " + path + ": not a regular file");
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) return MappedFile(nullptr, 0);  // mmap refuses length 0
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return ErrnoStatus("map", path, errno);
  return MappedFile(static_cast<const uint8_t*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

void MappedFile::Release(const uint8_t* begin, size_t bytes) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

absl::StatusOr<AppendFile> AppendFile::Open(const std::string& path, int64_t truncate_to) {
  bool created = false;
  int raw = Retry([&] { return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC); });
  if (raw < 0 && errno == ENOENT) {
    LH_RETURN_IF_ERROR(AskSeam("create", {.kind = DiskChange::Kind::kCreate, .path = path}));
    raw = Retry([&] { return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644); });
    created = true;
  }
  if (raw < 0) return ErrnoStatus("open", path, errno);
  UniqueFd fd(raw);
  // Without the folder entry on disk, a later Sync would make bytes durable that no name leads to.
  if (created) LH_RETURN_IF_ERROR(SyncDir(ParentDir(path)));
  LH_ASSIGN_OR_RETURN(const struct stat info, StatFd(fd.get(), path));
  int64_t size = info.st_size;
  if (truncate_to > size) {
    return MakeError(
        absl::StatusCode::kFailedPrecondition, "FILE_TOO_SHORT",
        "cannot cut " + path + " to " + std::to_string(truncate_to) + " bytes: it has " + std::to_string(size));
  }
  if (truncate_to >= 0 && truncate_to < size) {
    LH_RETURN_IF_ERROR(AskSeam("truncate", {.kind = DiskChange::Kind::kTruncate, .path = path, .offset = truncate_to}));
    if (Retry([&] { return ::ftruncate(fd.get(), truncate_to); }) != 0) return ErrnoStatus("truncate", path, errno);
    size = truncate_to;
  }
  return AppendFile(fd.Release(), path, size);
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), size_(other.size_) {}

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(other.fd_, -1);
    path_ = std::move(other.path_);
    size_ = other.size_;
  }
  return *this;
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status AppendFile::Append(std::string_view bytes) {
  LH_RETURN_IF_ERROR(
      AskSeam("append to", {.kind = DiskChange::Kind::kWrite, .path = path_, .offset = size_, .bytes = bytes}));
  const size_t written = WriteAll(fd_, bytes);
  if (written == bytes.size()) {
    size_ += static_cast<int64_t>(written);
    return absl::OkStatus();
  }
  const absl::Status status = ErrnoStatus("append to", path_, errno);
  // Takes the torn tail back, so that a record appended after space is freed follows the last whole one.
  if (written > 0 && Retry([&] { return ::ftruncate(fd_, size_); }) != 0) size_ += static_cast<int64_t>(written);
  return status;
}

absl::Status AppendFile::Sync() {
  LH_RETURN_IF_ERROR(AskSeam("sync", {.kind = DiskChange::Kind::kSyncFile, .path = path_}));
  if (Retry([&] { return ::fdatasync(fd_); }) != 0) return ErrnoStatus("sync", path_, errno);
  return absl::OkStatus();
}

namespace {

// By /proc/locks, "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF": process and inode.
std::string HolderOfLock(int fd) {
  struct stat info {};
  const absl::StatusOr<std::string> locks = ReadFile("/proc/locks", limits::kMaxProcLocksBytes);
  if (::fstat(fd, &info) != 0 || !locks.ok()) return "another process";
  char inode[64];  // "fe:00:5678", major and minor in hex
  std::snprintf(inode, sizeof(inode), " %02x:%02x:%llu ", major(info.st_dev), minor(info.st_dev),
                static_cast<unsigned long long>(info.st_ino));
  std::istringstream lines(*locks);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" FLOCK ") == std::string::npos || line.find(inode) == std::string::npos) continue;
    std::istringstream words(line);
    std::string number, kind, advisory, access, pid;
    words >> number >> kind >> advisory >> access >> pid;
    if (access == "WRITE") return "process " + pid;
  }
  return "another process";
}

}  // namespace

absl::StatusOr<FileLock> FileLock::Acquire(const std::string& path) {
  LH_ASSIGN_OR_RETURN(UniqueFd fd, OpenFd(path, O_RDWR | O_CREAT));
  if (Retry([&] { return ::flock(fd.get(), LOCK_EX | LOCK_NB); }) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus("lock", path, errno);
    return MakeError(absl::StatusCode::kFailedPrecondition, "LOCKED",
                     "cannot lock " + path + ": " + HolderOfLock(fd.get()) + " holds it");
  }
  return FileLock(fd.Release());
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  LH_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_RDONLY));
  LH_ASSIGN_OR_RETURN(const struct stat info, StatFd(fd.get(), path));
  const auto too_large = [&] {
    return MakeError(absl::StatusCode::kResourceExhausted, "FILE_TOO_LARGE",
                     path + " is larger than the limit of " + std::to_string(max_bytes) + " bytes");
  };
  if (info.st_size > max_bytes) return too_large();
  // Reads until the end rather than st_size: files of /proc report size 0, and others may grow.
  std::string bytes;
  size_t used = 0;
  for (;;) {
    if (used == bytes.size()) {
      const size_t expected = static_cast<size_t>(info.st_size) + 1;  // + 1: the read that finds the end
      bytes.resize(used < expected ? expected : used + std::max(used / 2, kReadChunkBytes));
    }
    const ssize_t n = Retry([&] { return ::read(fd.get(), bytes.data() + used, bytes.size() - used); });
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) break;
    used += static_cast<size_t>(n);
    if (static_cast<int64_t>(used) > max_bytes) return too_large();
  }
  bytes.resize(used);
  return bytes;
}

absl::StatusOr<std::string> ReadFileRange(const std::string& path, int64_t offset, int64_t length) {
  if (offset < 0 || length < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_RANGE",
                     "cannot read " + path + " at offset " + std::to_string(offset) + ", length " +
                         std::to_string(length) + ": neither may be negative");
  }
  LH_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_RDONLY));
  LH_ASSIGN_OR_RETURN(const struct stat info, StatFd(fd.get(), path));
  std::string bytes(static_cast<size_t>(std::min(length, std::max<int64_t>(info.st_size - offset, 0))), '\0');
  size_t used = 0;
  while (used < bytes.size()) {
    const ssize_t n = Retry([&] {
      return ::pread(fd.get(), bytes.data() + used, bytes.size() - used, offset + static_cast<int64_t>(used));
    });
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) break;
    used += static_cast<size_t>(n);
  }
  bytes.resize(used);
  return bytes;
}

absl::Status WriteFileAtomic(const std::string& path, std::string_view bytes) {
  LH_ASSIGN_OR_RETURN(TempFile temp, CreateSibling(path));
  if (absl::Status status = FillAndRename(temp, path, bytes); !status.ok()) {
    ::unlink(temp.path.c_str());
    return status;
  }
  return SyncDir(ParentDir(path));
}

absl::Status RenameFile(const std::string& from, const std::string& to) {
  LH_RETURN_IF_ERROR(AskSeam("rename", {.kind = DiskChange::Kind::kRename, .path = from, .to = to}));
  if (::rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus("rename", from + " to " + to, errno);
  return SyncDir(ParentDir(WithoutTrailingSlashes(to)));
}

absl::Status SyncFile(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_RDONLY));
  return SyncFd(fd.get(), path);
}

absl::Status SyncDir(const std::string& path) {
  LH_RETURN_IF_ERROR(AskSeam("sync", {.kind = DiskChange::Kind::kSyncDir, .path = WithoutTrailingSlashes(path)}));
  LH_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_RDONLY | O_DIRECTORY));
  if (Retry([&] { return ::fsync(fd.get()); }) == 0) return absl::OkStatus();
  // Some network and FUSE file systems have no folder sync; their metadata is as durable as it gets.
  if (errno == EINVAL) return absl::OkStatus();
  return ErrnoStatus("sync", path, errno);
}

absl::Status CreateDirs(const std::string& path) {
  const std::string dir = WithoutTrailingSlashes(path);
  if (IsDirectory(dir)) return absl::OkStatus();
  const std::string parent = ParentDir(dir);
  if (parent != dir && !dir.empty()) LH_RETURN_IF_ERROR(CreateDirs(parent));
  LH_RETURN_IF_ERROR(AskSeam("create folder", {.kind = DiskChange::Kind::kMakeDir, .path = dir}));
  if (::mkdir(dir.c_str(), 0755) != 0) {
    const int error_number = errno;
    if (error_number == EEXIST && IsDirectory(dir)) return absl::OkStatus();  // another process was quicker
    return ErrnoStatus("create folder", dir, error_number);
  }
  return SyncDir(parent);
}

absl::Status RemoveFile(const std::string& path) {
  LH_RETURN_IF_ERROR(AskSeam("remove", {.kind = DiskChange::Kind::kRemove, .path = path}));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus("remove", path, errno);
  return absl::OkStatus();
}

absl::Status RemoveTree(const std::string& path) {
  // With its slash kept, "link/" would name the link's target.
  const std::string tree = WithoutTrailingSlashes(path);
  if (tree.empty() || tree == "/") {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH", "refusing to remove the tree '" + tree + "'");
  }
  LH_RETURN_IF_ERROR(AskSeam("remove", {.kind = DiskChange::Kind::kRemove, .path = tree}));
  std::error_code error;
  std::filesystem::remove_all(tree, error);
  if (error && error != std::errc::no_such_file_or_directory) return ErrnoStatus("remove", tree, error.value());
  return absl::OkStatus();
}

absl::StatusOr<int64_t> FileModifiedNanos(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

absl::Status TouchFile(const std::string& path) {
  if (::utimensat(AT_FDCWD, path.c_str(), nullptr, 0) != 0) return ErrnoStatus("touch", path, errno);
  return absl::OkStatus();
}

absl::StatusOr<std::string> FileStamp(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
  return std::to_string(info.st_size) + " " + std::to_string(info.st_mtim.tv_sec) + "." +
         std::to_string(info.st_mtim.tv_nsec) + " " + std::to_string(info.st_ino);
}

bool FileExists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

bool IsDirectory(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

absl::StatusOr<int64_t> FileSize(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
  return int64_t{info.st_size};
}

absl::StatusOr<std::vector<std::string>> ListDir(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), [](DIR* d) { return ::closedir(d); });
  if (dir == nullptr) return ErrnoStatus("list", path, errno);
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return ErrnoStatus("list", path, errno);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<int64_t> DiskFreeBytes(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const struct statvfs info, StatDisk(path));
  return DiskBytes(info.f_bavail, info.f_frsize);
}

absl::StatusOr<int64_t> DiskSizeBytes(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const struct statvfs info, StatDisk(path));
  return DiskBytes(info.f_blocks, info.f_frsize);
}

// Exactly one slash between the two; an absolute `b` stays below `a`.
std::string JoinPath(std::string_view a, std::string_view b) {
  if (a.empty()) return std::string(b);
  while (!b.empty() && b.front() == '/') b.remove_prefix(1);
  std::string joined(a);
  if (b.empty()) return joined;
  if (joined.back() != '/') joined += '/';
  return joined.append(b);
}

std::string ExecutableDir() {
  char target[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", target, sizeof(target));
  if (length <= 0) return ".";
  return ParentDir(std::string(target, static_cast<size_t>(length)));
}

}  // namespace longhaul
