// What a command may touch outside itself, handed in so that tests own all of it: two streams, a clock, an interrupt.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "clients/channel/channel.h"

namespace longhaul::cli {

// Ctrl-C as a value. Thread-safe.
class StopSignal {
 public:
  void Stop();
  bool stopped() const;
  // Returns early, with true, when stopped.
  bool WaitForMillis(int64_t ms);

  // Runs `cancel` on Stop (at once if already stopped) for as long as the scope lives. `cancel` must not block.
  class Scope {
   public:
    Scope(StopSignal& signal, std::function<void()> cancel);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StopSignal& signal_;
    int64_t key_;
  };

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;                              // guarded by mutex_
  int64_t next_key_ = 0;                              // guarded by mutex_
  std::map<int64_t, std::function<void()>> cancels_;  // guarded by mutex_
};

// Turns the first SIGINT or SIGTERM into Stop; the second ends the process with 130. Blocks both signals in the calling
// thread: REQUIRES construction before any other thread starts.
class SignalThread {
 public:
  explicit SignalThread(StopSignal& signal);
  ~SignalThread();
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;
  // For an exec: the next program must not inherit our mask.
  static void RestoreMask();

 private:
  void Run();
  StopSignal& signal_;
  UniqueFd end_;
  std::thread thread_;
};

// Streams, terminal facts and time of one run of the CLI. Pointers are not owned.
struct CliEnv {
  std::ostream* out = nullptr;  // data
  std::ostream* err = nullptr;  // progress, notes, errors
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  bool color = false;  // never without a terminal, never with NO_COLOR
  int columns = 80;    // of the terminal
  channel::ChannelOptions default_channel = {.address = "127.0.0.1:7070"};  // what the environment says
  const Clock* clock = nullptr;
  StopSignal* stop = nullptr;
  // Replaces this process by the program at `path`; returns only on failure, with errno set.
  std::function<void(const std::string& path, const std::vector<std::string>& argv)> exec;
  std::vector<std::string> tool_dirs;  // where longhaul-tool is looked for, in order
};

}  // namespace longhaul::cli
