// How the agent's one core thread is woken: functions posted by other threads, and files that change in the attempt
// folders (inotify). The core thread alone drains and waits; Post and Wake are for any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace longhaul::agent {

class Mailbox {
 public:
  // CHECKs that the kernel gives an event descriptor; without inotify (its limit reached) waits are cut to 50 ms.
  Mailbox();

  void Post(std::function<void()> task);
  void Wake();  // async-signal-safe

  // Runs what was posted, in order, on the caller's thread; what those post runs at the next call.
  void Drain();
  // Returns when something was posted, a watched folder changed, or timeout_ms have passed.
  void Wait(int64_t timeout_ms);
  // Changes of the files directly in `dir` end a Wait from now on. The watch goes with the folder.
  void WatchDir(const std::string& dir);

 private:
  UniqueFd event_;
  UniqueFd inotify_;
  std::mutex mutex_;
  std::vector<std::function<void()>> tasks_;  // guarded by mutex_
};

// Runs blocking work somewhere else.
class TaskRunner {
 public:
  virtual ~TaskRunner() = default;
  virtual void Run(std::function<void()> task) = 0;
};

}  // namespace longhaul::agent
