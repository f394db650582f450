#include "clients/cli/terminal.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "base/program/exit_codes.h"

namespace longhaul::cli {
namespace {

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

void StopSignal::Stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  for (const auto& [key, cancel] : cancels_) cancel();
  changed_.notify_all();
}

bool StopSignal::stopped() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stopped_;
}

bool StopSignal::WaitForMillis(int64_t ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return stopped_; });
}

StopSignal::Scope::Scope(StopSignal& signal, std::function<void()> cancel) : signal_(signal) {
  std::lock_guard<std::mutex> lock(signal_.mutex_);
  key_ = signal_.next_key_++;
  if (signal_.stopped_) cancel();
  signal_.cancels_.emplace(key_, std::move(cancel));
}

StopSignal::Scope::~Scope() {
  std::lock_guard<std::mutex> lock(signal_.mutex_);
  signal_.cancels_.erase(key_);
}

SignalThread::SignalThread(StopSignal& signal) : signal_(signal), end_(eventfd(0, EFD_CLOEXEC)) {
  const sigset_t set = HandledSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Run(); });
}

SignalThread::~SignalThread() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(end_.get(), &one, sizeof(one));
  thread_.join();
}

void SignalThread::RestoreMask() {
  const sigset_t set = HandledSignals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void SignalThread::Run() {
  const sigset_t set = HandledSignals();
  UniqueFd signals(signalfd(-1, &set, SFD_CLOEXEC));
  bool first = true;
  while (true) {
    pollfd fds[2] = {{signals.get(), POLLIN, 0}, {end_.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents != 0) return;
    if (fds[0].revents == 0) continue;
    signalfd_siginfo info;
    if (read(signals.get(), &info, sizeof(info)) != static_cast<ssize_t>(sizeof(info))) continue;
    if (!first) _exit(kInterrupted);
    first = false;
    signal_.Stop();
  }
}

}  // namespace longhaul::cli
