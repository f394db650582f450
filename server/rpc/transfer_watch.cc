#include "server/rpc/transfer_watch.h"

#include <algorithm>
#include <chrono>

namespace longhaul::server {

TransferWatch::TransferWatch(const Clock* clock, int64_t stall_ms) : clock_(clock), stall_ms_(stall_ms) {
  thread_ = std::thread([this] { Loop(); });
}

TransferWatch::~TransferWatch() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void TransferWatch::Loop() {
  // A quarter: a transfer is ended at most that much late.
  const std::chrono::milliseconds period(std::max<int64_t>(1, stall_ms_ / 4));
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period, [this] { return stopping_; })) {
    const int64_t oldest = clock_->BootNanos() - stall_ms_ * 1'000'000;
    while (Transfer* const stalled = NextStalled(oldest)) {
      grpc::ServerContextBase* const call = stalled->call_;
      cancelling_ = stalled;
      lock.unlock();
      call->TryCancel();  // may run what waits for the call, ~Transfer with it, on this thread
      lock.lock();
      cancelling_ = nullptr;
      cancelled_.notify_all();
    }
  }
}

TransferWatch::Transfer* TransferWatch::NextStalled(int64_t oldest_boot_nanos) {
  for (Transfer* transfer : transfers_) {
    if (transfer->moved_boot_nanos_ <= oldest_boot_nanos && !transfer->stalled_.exchange(true)) return transfer;
  }
  return nullptr;
}

TransferWatch::Transfer::Transfer(TransferWatch* watch, grpc::ServerContextBase* call)
    : watch_(watch), call_(call), moved_boot_nanos_(watch->clock_->BootNanos()) {
  std::lock_guard lock(watch_->mutex_);
  watch_->transfers_.insert(this);
}

TransferWatch::Transfer::~Transfer() {
  std::unique_lock lock(watch_->mutex_);
  watch_->transfers_.erase(this);
  if (std::this_thread::get_id() == watch_->thread_.get_id()) return;
  watch_->cancelled_.wait(lock, [this] { return watch_->cancelling_ != this; });
}

}  // namespace longhaul::server
