#include "worker/attempt/stderr_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <string_view>

#include "base/env.h"
#include "base/errno_status.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "worker/attempt/utf8.h"

namespace longhaul::attempt {
namespace {

constexpr std::string_view kRotatedPrefix = "stderr.log.";

struct Rotated {
  std::string path;   // "" = never rotated
  int64_t begin = 0;  // stream offset of its first byte
  int64_t end = 0;    // and where stderr.log begins
};

absl::StatusOr<Rotated> FindRotated(const AttemptDir& dir) {
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(dir.path()));
  Rotated newest;
  for (const std::string& name : names) {
    if (name.compare(0, kRotatedPrefix.size(), kRotatedPrefix) != 0) continue;
    int64_t begin = -1;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kRotatedPrefix.size(), end, begin);
    if (parsed.ec != std::errc() || parsed.ptr != end || begin < newest.begin) continue;
    newest.path = JoinPath(dir.path(), name);
    newest.begin = begin;
  }
  if (!newest.path.empty()) {
    LH_ASSIGN_OR_RETURN(const int64_t bytes, FileSize(newest.path));
    newest.end = newest.begin + bytes;
  }
  return newest;
}

}  // namespace

absl::Status RotateStderrIfLarge(const AttemptDir& dir, int64_t rotate_bytes) {
  struct stat log = {};
  struct stat ours = {};
  if (::fstat(STDERR_FILENO, &ours) != 0 || ::stat(dir.StderrPath().c_str(), &log) != 0) return absl::OkStatus();
  if (log.st_dev != ours.st_dev || log.st_ino != ours.st_ino || log.st_size < rotate_bytes) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const Rotated before, FindRotated(dir));
  // In this order a reader finds at every moment either the old pair or the new one.
  const std::string moved = dir.StderrPath() + "." + std::to_string(before.end);
  if (::rename(dir.StderrPath().c_str(), moved.c_str()) != 0) return ErrnoStatus("rename", dir.StderrPath(), errno);
  UniqueFd fd(::open(dir.StderrPath().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (fd.get() < 0) return ErrnoStatus("create", dir.StderrPath(), errno);
  std::fflush(stderr);
  if (::dup2(fd.get(), STDERR_FILENO) < 0) return ErrnoStatus("redirect to", dir.StderrPath(), errno);
  return before.path.empty() ? absl::OkStatus() : RemoveFile(before.path);
}

absl::StatusOr<LogChunk> ReadStderr(const AttemptDir& dir, int64_t offset, int64_t max_bytes) {
  LH_ASSIGN_OR_RETURN(const Rotated rotated, FindRotated(dir));
  LogChunk chunk;
  chunk.offset = std::max(offset, rotated.begin);
  if (chunk.offset < rotated.end) {
    auto data = ReadFileRange(rotated.path, chunk.offset - rotated.begin, max_bytes);
    if (data.ok()) {
      chunk.data = *std::move(data);
      return chunk;
    }
    if (data.status().code() != absl::StatusCode::kNotFound) return data.status();
    return chunk;  // rotated away between the two looks; the next call sees the new pair
  }
  if (!FileExists(dir.StderrPath())) return chunk;
  LH_ASSIGN_OR_RETURN(chunk.data, ReadFileRange(dir.StderrPath(), chunk.offset - rotated.end, max_bytes));
  // A rotation between the two looks would have given bytes of another place: then say nothing this time.
  LH_ASSIGN_OR_RETURN(const Rotated after, FindRotated(dir));
  if (after.end != rotated.end) chunk.data.clear();
  return chunk;
}

std::string StderrTail(const AttemptDir& dir, int64_t max_bytes) {
  const auto rotated = FindRotated(dir);
  if (!rotated.ok()) return "";
  const int64_t size = FileSize(dir.StderrPath()).value_or(0);
  std::string tail;
  if (size < max_bytes && !rotated->path.empty()) {
    const int64_t rest = std::min(max_bytes - size, rotated->end - rotated->begin);
    tail = ReadFileRange(rotated->path, rotated->end - rotated->begin - rest, rest).value_or("");
  }
  const int64_t take = std::min(size, max_bytes);
  tail += ReadFileRange(dir.StderrPath(), size - take, take).value_or("");
  std::string_view whole = tail;
  // A cut may fall inside a character: drop its rest, at most three bytes.
  for (int i = 0; i < 3 && !whole.empty() && (static_cast<uint8_t>(whole[0]) & 0xc0) == 0x80; ++i)
    whole.remove_prefix(1);
  return ToUtf8(whole);
}

}  // namespace longhaul::attempt
