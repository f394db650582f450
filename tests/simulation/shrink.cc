#include "tests/simulation/shrink.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "base/check.h"

namespace longhaul::simulation {
namespace {

constexpr unsigned kLongestSeconds = 120;  // a run that takes longer hangs
constexpr size_t kStderrTailBytes = 2'000;

void WriteAll(int fd, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(fd, text.data() + at, text.size() - at);
    if (n <= 0) return;
    at += static_cast<size_t>(n);
  }
}

// Until both ends are closed.
void ReadBoth(int first_fd, std::string* first, int second_fd, std::string* second) {
  std::array<pollfd, 2> fds = {pollfd{first_fd, POLLIN, 0}, pollfd{second_fd, POLLIN, 0}};
  std::array<std::string*, 2> texts = {first, second};
  int open = 2;
  while (open > 0) {
    ::poll(fds.data(), fds.size(), -1);
    for (size_t i = 0; i < fds.size(); ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      std::array<char, 4096> buffer;
      const ssize_t n = ::read(fds[i].fd, buffer.data(), buffer.size());
      if (n > 0) {
        texts[i]->append(buffer.data(), static_cast<size_t>(n));
      } else {
        fds[i].fd = -1;
        --open;
      }
    }
  }
}

}  // namespace

Outcome SimulateIsolated(const Trace& trace) {
  int results[2];
  int errors[2];
  LH_CHECK(::pipe(results) == 0 && ::pipe(errors) == 0);
  std::fflush(nullptr);
  const pid_t child = ::fork();
  LH_CHECK(child >= 0, "fork");
  if (child == 0) {
    ::close(results[0]);
    ::close(errors[0]);
    ::dup2(errors[1], STDERR_FILENO);
    ::alarm(kLongestSeconds);
    const Outcome outcome = Simulate(trace);
    std::string text;
    for (const std::string& violation : outcome.violations) text += "!" + violation + "\n";
    WriteAll(results[1], text + outcome.notes);
    ::_exit(0);
  }
  ::close(results[1]);
  ::close(errors[1]);
  std::string text;
  std::string error;
  ReadBoth(results[0], &text, errors[0], &error);
  ::close(results[0]);
  ::close(errors[0]);
  int status = 0;
  LH_CHECK(::waitpid(child, &status, 0) == child);
  Outcome outcome;
  while (text.starts_with("!")) {
    const size_t end = text.find('\n');
    outcome.violations.push_back(text.substr(1, end - 1));
    text.erase(0, end + 1);
  }
  outcome.notes = text;
  if (WIFSIGNALED(status)) {
    const size_t cut = error.size() > kStderrTailBytes ? error.size() - kStderrTailBytes : 0;
    outcome.violations.push_back("the process died of signal " + std::to_string(WTERMSIG(status)) + ": " +
                                 error.substr(cut));
  }
  return outcome;
}

Trace Shrink(Trace trace, const std::function<bool(const Trace&)>& fails, int most_tries) {
  int tries = 0;
  const auto keep_if_fails = [&](Trace candidate) {
    if (++tries > most_tries || !fails(candidate)) return false;
    trace = std::move(candidate);
    return true;
  };
  for (size_t length = std::max<size_t>(trace.steps.size() / 2, 1); tries < most_tries; length = length / 2) {
    bool shorter = false;
    for (size_t at = 0; at < trace.steps.size() && tries < most_tries;) {
      Trace candidate = trace;
      const size_t end = std::min(at + length, trace.steps.size());
      candidate.steps.erase(candidate.steps.begin() + static_cast<int64_t>(at),
                            candidate.steps.begin() + static_cast<int64_t>(end));
      if (keep_if_fails(std::move(candidate))) {
        shorter = true;
      } else {
        at += length;
      }
    }
    if (length == 1 && !shorter) break;
    if (length == 1) length = 2;  // once more with single steps
  }
  for (size_t i = 0; i < trace.steps.size() && tries < most_tries; ++i) {
    if (trace.steps[i].after_permille == 0) continue;
    Trace candidate = trace;
    candidate.steps[i].after_permille = 0;
    keep_if_fails(std::move(candidate));
  }
  return trace;
}

std::string Explain(const Trace& failing) {
  const auto fails = [](const Trace& trace) { return !SimulateIsolated(trace).violations.empty(); };
  if (!fails(failing)) {
    return "seed " + std::to_string(failing.seed) + " fails in this process and not in one of its own\n";
  }
  const Trace trace = Shrink(failing, fails);
  const Outcome outcome = SimulateIsolated(trace);
  std::string text = "seed " + std::to_string(failing.seed) + (failing.disk ? " on a disk" : " in memory") + ": ";
  for (const std::string& violation : outcome.violations) text += violation + "\n";
  text += "\nThe shortest trace that fails so (simulate --replay FILE, or keep it in tests/simulation/traces):\n";
  text += ToText(trace);
  text += "\nWhat happened last:\n" + outcome.notes;
  return text;
}

}  // namespace longhaul::simulation
