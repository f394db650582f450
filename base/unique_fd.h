// Owns one file descriptor; -1 owns nothing. Moves, never copies. Not thread-safe.
#pragma once

#include <unistd.h>

#include <utility>

namespace longhaul {

class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = other.Release();
    }
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }
  // False, with errno set, where the kernel reports a late write error. Linux frees the descriptor even on EINTR.
  bool Reset() {
    const int fd = Release();
    return fd < 0 || ::close(fd) == 0;
  }

 private:
  int fd_ = -1;
};

}  // namespace longhaul
