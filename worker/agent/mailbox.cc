#include "worker/agent/mailbox.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/check.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kPollWithoutInotifyMs = 50;

}  // namespace

Mailbox::Mailbox()
    : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), inotify_(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) {
  LH_CHECK(event_.get() >= 0, "eventfd");
}

void Mailbox::Post(std::function<void()> task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  Wake();
}

void Mailbox::Wake() {
  const uint64_t one = 1;
  // Fails only where the counter is full, and then a wake-up is pending.
  [[maybe_unused]] const ssize_t n = ::write(event_.get(), &one, sizeof(one));
}

void Mailbox::Drain() {
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks.swap(tasks_);
  }
  for (const auto& task : tasks) task();
}

void Mailbox::Wait(int64_t timeout_ms) {
  if (inotify_.get() < 0) timeout_ms = std::min(timeout_ms, kPollWithoutInotifyMs);
  // poll ignores a negative descriptor.
  std::array<pollfd, 2> fds = {pollfd{event_.get(), POLLIN, 0}, pollfd{inotify_.get(), POLLIN, 0}};
  if (::poll(fds.data(), fds.size(), static_cast<int>(std::clamp<int64_t>(timeout_ms, 0, 60'000))) <= 0) return;
  std::array<char, 4096> bytes;
  for (const pollfd& fd : fds) {
    if ((fd.revents & POLLIN) == 0) continue;
    while (::read(fd.fd, bytes.data(), bytes.size()) > 0) {
    }
  }
}

void Mailbox::WatchDir(const std::string& dir) {
  if (inotify_.get() < 0) return;
  if (::inotify_add_watch(inotify_.get(), dir.c_str(), IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0) inotify_.Reset();
}

}  // namespace longhaul::agent
