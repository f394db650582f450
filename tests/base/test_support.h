// What the tests of base share: a folder that goes away, a forked child that reports by exit code, and waits that block
// in the kernel instead of sleeping.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "base/check.h"
#include "base/env.h"

namespace longhaul {

class TempDir {
 public:
  TempDir() {
    std::string name = JoinPath(Base(), "longhaul-base-XXXXXX");
    LH_CHECK(::mkdtemp(name.data()) != nullptr, name);
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { LH_CHECK(RemoveTree(path_).ok(), path_); }

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return JoinPath(path_, name); }

 private:
  static std::string Base() {
    const char* base = std::getenv("TMPDIR");
    return base == nullptr ? "/tmp" : base;
  }
  std::string path_;
};

// Runs `body` in a forked child, which exits with what it returns; gives back the child's wait status.
template <typename Body>
int StatusOfForked(Body body) {
  const pid_t pid = ::fork();
  LH_CHECK(pid >= 0, "fork");
  if (pid == 0) ::_exit(body());
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) LH_CHECK(errno == EINTR, "waitpid");
  return status;
}

// Blocks until our child has ended, without collecting it.
inline void AwaitExit(pid_t pid) {
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) != 0) LH_CHECK(errno == EINTR, "waitid");
}

}  // namespace longhaul
