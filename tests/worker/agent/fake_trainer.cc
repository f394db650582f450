// A trainer that does what a script says: the attempt's dataset is the script, one command a line. It acts on the
// attempt directory as longhaul-train does, with real events, files and signals.
//
//   started | progress STEP [SECONDS [HOST_BYTES]] | writing STEP | checkpoint STEP | final STEP | artifact | report
//   hold | unhold | warn TEXT
//   stderr TEXT | wait FILE | until_signal | deaf | exit REASON_NUMBER | crash | return CODE
//
// writing: a checkpoint is begun, which `checkpoint` ends. wait: until the
// folder has FILE. until_signal: until SIGTERM (writes a checkpoint of the next step, exits
// CHECKPOINTED) or SIGUSR1 (exits CANCELLED). deaf: ignores both for ever.
#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "base/check.h"
#include "base/env.h"
#include "base/process.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/attempt/event_log.h"
#include "worker/attempt/exit_codes.h"

namespace longhaul::attempt {
namespace {

class FakeTrainer {
 public:
  FakeTrainer(AttemptDir dir, EventLogWriter events) : dir_(std::move(dir)), events_(std::move(events)) {}

  int Run(const std::string& script) {
    std::istringstream lines(script);
    std::string line;
    while (std::getline(lines, line)) {
      std::istringstream words(line);
      std::string command;
      words >> command;
      std::string rest;
      std::getline(words >> std::ws, rest);
      if (const int code = Do(command, rest); code >= 0) return code;
    }
    return kExitSucceeded;
  }

 private:
  int Do(const std::string& command, const std::string& rest) {
    v1::TrainerEvent event;
    const int64_t number = std::atoll(rest.c_str());
    if (command == "started") {
      event.mutable_started()->set_total_steps(10);
    } else if (command == "progress") {
      return Progress(number, rest);
    } else if (command == "writing") {
      LH_CHECK(CreateDirs(dir_.CheckpointDir(number) + ".partial").ok());
      return -1;
    } else if (command == "checkpoint" || command == "final") {
      return Checkpoint(number, command == "final");
    } else if (command == "artifact") {
      Write(dir_.ArtifactDir(), "adapter_model.safetensors", "adapter");
      event.mutable_artifact()->add_files("adapter_model.safetensors");
      event.mutable_artifact()->mutable_result()->set_steps(step_);
    } else if (command == "report") {
      event.mutable_data_report()->set_examples(7);
    } else if (command == "hold" || command == "unhold") {
      event.mutable_hold()->set_held(command == "hold");
    } else if (command == "warn") {
      event.mutable_warning()->set_message(rest);
    } else if (command == "stderr") {
      std::fprintf(stderr, "%s\n", rest.c_str());
      return -1;
    } else if (command == "wait") {
      WaitForFile(rest);
      return -1;
    } else if (command == "until_signal") {
      return UntilSignal();
    } else if (command == "deaf") {
      while (true) ::pause();
    } else if (command == "crash") {
      ::raise(SIGKILL);
    } else if (command == "return") {
      return static_cast<int>(number);
    } else if (command == "exit") {
      event.mutable_exit()->set_reason(static_cast<v1::TrainerExitReason>(number));
    } else {
      CheckFailed("a known command", __FILE__, __LINE__, command);
    }
    LH_CHECK(events_.Append(event).ok());
    return -1;
  }

  static void Write(const std::string& folder, const std::string& name, const std::string& bytes) {
    LH_CHECK(CreateDirs(folder).ok());
    LH_CHECK(WriteFileAtomic(JoinPath(folder, name), bytes).ok());
  }

  int Progress(int64_t step, const std::string& words) {
    step_ = step;
    v1::TrainerEvent event;
    event.mutable_progress()->set_step(step);
    event.mutable_progress()->set_loss(1.0 / static_cast<double>(step + 1));
    double seconds = 0;
    int64_t host_bytes = 0;
    const int read = std::sscanf(words.c_str(), "%*d %lf %" SCNd64, &seconds, &host_bytes);
    if (read >= 1) event.mutable_progress()->set_step_seconds(seconds);
    if (read >= 2) event.mutable_progress()->set_host_bytes_used(host_bytes);
    LH_CHECK(events_.Append(event).ok());
    return -1;
  }

  int Checkpoint(int64_t step, bool final) {
    LH_CHECK(RemoveTree(dir_.CheckpointDir(step) + ".partial").ok());
    Write(dir_.CheckpointDir(step), "state.json", "state of step " + std::to_string(step));
    Write(dir_.CheckpointDir(step), "adapter.safetensors", "weights of step " + std::to_string(step));
    v1::TrainerEvent event;
    event.mutable_checkpoint()->set_step(step);
    event.mutable_checkpoint()->set_final(final);
    event.mutable_checkpoint()->add_files("state.json");
    event.mutable_checkpoint()->add_files("adapter.safetensors");
    event.mutable_checkpoint()->set_plan_signature("signature");
    event.mutable_checkpoint()->set_made_with("2 threads, avx2");
    LH_CHECK(events_.Append(event).ok());
    return -1;
  }

  void WaitForFile(const std::string& name) {
    const int fd = ::inotify_init1(IN_CLOEXEC);
    LH_CHECK(fd >= 0 && ::inotify_add_watch(fd, dir_.path().c_str(), IN_CREATE | IN_MOVED_TO) >= 0);
    std::array<char, 4096> events;
    while (!FileExists(JoinPath(dir_.path(), name))) LH_CHECK(::read(fd, events.data(), events.size()) > 0);
    ::close(fd);
  }

  int UntilSignal() {
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGTERM);
    ::sigaddset(&set, SIGUSR1);
    int signal = 0;
    LH_CHECK(::sigwait(&set, &signal) == 0);
    v1::TrainerEvent event;
    if (signal == SIGTERM) {
      Checkpoint(step_ + 1, false);
      event.mutable_exit()->set_reason(v1::TRAINER_EXIT_CHECKPOINTED);
    } else {
      event.mutable_exit()->set_reason(v1::TRAINER_EXIT_CANCELLED);
    }
    LH_CHECK(events_.Append(event).ok());
    return signal == SIGTERM ? kExitCheckpointed : kExitCancelled;
  }

  AttemptDir dir_;
  EventLogWriter events_;
  int64_t step_ = 0;
};

int Main(int argc, char** argv) {
  LH_CHECK(argc == 2);
  // Blocked from the first moment, so that no signal comes too early.
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGUSR1);
  LH_CHECK(::sigprocmask(SIG_BLOCK, &set, nullptr) == 0);
  const AttemptDir dir(argv[1]);
  const auto lock = FileLock::Acquire(dir.LockPath());
  if (!lock.ok()) return kExitFolderLocked;
  LH_CHECK(dir.WritePid(*SelfProcessId()).ok());
  auto events = EventLogWriter::Open(dir.EventsPath());
  LH_CHECK(events.ok());
  const auto script = ReadFile(dir.DatasetPath(), 1 << 20);
  LH_CHECK(script.ok());
  return FakeTrainer(dir, *std::move(events)).Run(*script);
}

}  // namespace
}  // namespace longhaul::attempt

int main(int argc, char** argv) { return longhaul::attempt::Main(argc, argv); }
