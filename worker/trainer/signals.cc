#include "worker/trainer/signals.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "base/check.h"

namespace longhaul::trainer {

SignalInbox::SignalInbox() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) ::sigaddset(&set, signal);
  LH_CHECK(::pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  fd_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  LH_CHECK(fd_.get() >= 0, "signalfd");
}

void SignalInbox::Poll() {
  signalfd_siginfo info;
  while (::read(fd_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    (info.ssi_signo == SIGUSR1 ? cancel_ : stop_) = true;
  }
}

void SignalInbox::Wait(int64_t timeout_ms) {
  pollfd fd = {fd_.get(), POLLIN, 0};
  ::poll(&fd, 1, static_cast<int>(std::clamp<int64_t>(timeout_ms, 0, 60'000)));
  Poll();
}

}  // namespace longhaul::trainer
