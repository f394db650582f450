// SIGTERM and SIGUSR1 as facts that are asked for: blocked, and read from a descriptor. So no code runs in a handler,
// and nothing global is needed.
#pragma once

#include <cstdint>

#include "base/unique_fd.h"

namespace longhaul::trainer {

// One a process, made before any other thread: they inherit the blocked signals. Not thread-safe.
class SignalInbox {
 public:
  // CHECKs that the kernel gives the descriptor.
  SignalInbox();

  // One system call where nothing came.
  void Poll();
  // Polls after a signal or after timeout_ms.
  void Wait(int64_t timeout_ms);

  // SIGTERM or SIGINT: a checkpoint at the next step, then the end. Stays true.
  bool stop_asked() const { return stop_; }
  // SIGUSR1: the end within a layer. Stays true.
  bool cancel_asked() const { return cancel_; }

 private:
  UniqueFd fd_;
  bool stop_ = false;
  bool cancel_ = false;
};

}  // namespace longhaul::trainer
