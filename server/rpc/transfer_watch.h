// Ends transfers that stand still: a client that neither sends nor reads would hold its thread, or what is there for it
// to read, for ever. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <mutex>
#include <set>
#include <thread>

#include "base/clock.h"
#include "base/limits.h"
#include "grpcpp/server_context.h"

namespace longhaul::server {

class TransferWatch {
 public:
  explicit TransferWatch(const Clock* clock, int64_t stall_ms = limits::kTransferStallMs);
  ~TransferWatch();

  // One transfer, for as long as it lives. Destroy all before the watch.
  class Transfer {
   public:
    // `call` must outlive it. Destroyed without a lock that the call's callbacks take.
    Transfer(TransferWatch* watch, grpc::ServerContextBase* call);
    ~Transfer();
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;
    void Moved() { moved_boot_nanos_ = watch_->clock_->BootNanos(); }
    // It is not the client that is waited for, until Moved.
    void Rest() { moved_boot_nanos_ = std::numeric_limits<int64_t>::max(); }
    // The watch has ended it: the client gets CANCELLED.
    bool stalled() const { return stalled_; }

   private:
    friend class TransferWatch;
    TransferWatch* const watch_;
    grpc::ServerContextBase* const call_;
    std::atomic<int64_t> moved_boot_nanos_;
    std::atomic<bool> stalled_{false};
  };

 private:
  void Loop();
  Transfer* NextStalled(int64_t oldest_boot_nanos);  // under mutex_; null = none

  const Clock* const clock_;
  const int64_t stall_ms_;
  std::mutex mutex_;  // guards transfers_, cancelling_, stopping_
  std::condition_variable wake_;
  std::condition_variable cancelled_;  // cancelling_ changed
  const Transfer* cancelling_ = nullptr;
  std::set<Transfer*> transfers_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace longhaul::server
