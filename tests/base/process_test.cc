#include "base/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/env.h"
#include "base/error.h"
#include "tests/base/test_support.h"

namespace longhaul {
namespace {

SpawnOptions Shell(const std::string& script) {
  SpawnOptions options;
  options.argv = {"sh", "-c", script};
  return options;
}

ExitState RunToEnd(const SpawnOptions& options) {
  const absl::StatusOr<ProcessId> id = Spawn(options);
  LH_CHECK(id.ok(), std::string(id.status().message().data(), id.status().message().size()));
  AwaitExit(id->pid);
  return ReapProcess(*id);
}

std::string Output(SpawnOptions options) {
  const TempDir dir;
  options.stdout_path = dir.File("out");
  const ExitState state = RunToEnd(options);
  EXPECT_EQ(state.exit_code, 0);
  return ReadFile(dir.File("out"), 1 << 20).value();
}

TEST(Process, ExitStates) {
  ExitState state = RunToEnd(Shell("exit 7"));
  EXPECT_TRUE(state.exited);
  EXPECT_EQ(state.exit_code, 7);
  EXPECT_EQ(state.signal, 0);
  state = RunToEnd(Shell("kill -TERM $$"));
  EXPECT_TRUE(state.exited);
  EXPECT_EQ(state.exit_code, -1);
  EXPECT_EQ(state.signal, SIGTERM);
}

TEST(Process, LifeOfAChild) {
  SpawnOptions options;
  options.argv = {"sleep", "1000"};
  const absl::StatusOr<ProcessId> id = Spawn(options);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_TRUE(ProcessAlive(*id));
  EXPECT_FALSE(ReapProcess(*id).exited);
  EXPECT_GT(ProcessRssBytes(id->pid), 0);
  EXPECT_GE(ProcessRssBytes(id->pid, true), ProcessRssBytes(id->pid));

  // The same pid with another start time is another process: it is neither alive nor signalled nor collected.
  const ProcessId other{id->pid, id->start_ticks + 1};
  EXPECT_FALSE(ProcessAlive(other));
  EXPECT_TRUE(SignalProcess(other, SIGKILL).ok());
  EXPECT_TRUE(ReapProcess(other).exited);
  EXPECT_TRUE(ProcessAlive(*id));

  ASSERT_TRUE(SignalProcess(*id, SIGKILL).ok());
  AwaitExit(id->pid);
  EXPECT_FALSE(ProcessAlive(*id));  // a zombie until collected
  EXPECT_EQ(ProcessRssBytes(id->pid), 0);
  const ExitState state = ReapProcess(*id);
  EXPECT_TRUE(state.exited);
  EXPECT_EQ(state.signal, SIGKILL);
  EXPECT_TRUE(SignalProcess(*id, SIGKILL).ok());
  EXPECT_TRUE(ReapProcess(*id).exited);
  EXPECT_EQ(ReapProcess(*id).exit_code, -1);
}

TEST(Process, OutlivesItsParent) {
  // The orphan comes to us rather than to init, so that its end can be awaited.
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int status = StatusOfForked([&] {
    SpawnOptions options;
    options.argv = {"sleep", "1000"};
    const absl::StatusOr<ProcessId> id = Spawn(options);
    if (!id.ok()) return 1;
    return ::write(ends[1], &*id, sizeof(*id)) == sizeof(*id) ? 0 : 2;
  });
  ASSERT_EQ(status, 0);
  ProcessId id;
  ASSERT_EQ(::read(ends[0], &id, sizeof(id)), static_cast<ssize_t>(sizeof(id)));
  EXPECT_TRUE(ProcessAlive(id));
  EXPECT_EQ(::getsid(id.pid), id.pid);
  EXPECT_EQ(::getpgid(id.pid), id.pid);
  EXPECT_TRUE(SignalProcess(id, SIGTERM).ok());
  AwaitExit(id.pid);
  EXPECT_FALSE(ProcessAlive(id));
  EXPECT_EQ(ReapProcess(id).signal, SIGTERM);
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(Process, GroupSignalReachesGrandchildren) {
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  const TempDir dir;
  const std::string fifo = dir.File("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const bool new_session : {true, false}) {
    SpawnOptions options = Shell("sleep 1000 & echo $! > " + fifo + "; wait");
    options.new_session = new_session;
    const absl::StatusOr<ProcessId> id = Spawn(options);
    ASSERT_TRUE(id.ok()) << id.status();
    const int fd = ::open(fifo.c_str(), O_RDONLY);
    char text[32] = {};
    ASSERT_GT(::read(fd, text, sizeof(text) - 1), 0);
    ::close(fd);
    const pid_t grandchild = std::atoi(text);
    ASSERT_GT(grandchild, 0);
    EXPECT_EQ(::getpgid(grandchild), id->pid);
    EXPECT_EQ(::getsid(id->pid) == id->pid, new_session);
    ASSERT_TRUE(SignalProcess(*id, SIGKILL, true).ok());
    AwaitExit(id->pid);
    EXPECT_EQ(ReapProcess(*id).signal, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(grandchild, &status, 0), grandchild);
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
  }
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST(Process, NotOurChild) {
  const absl::StatusOr<ProcessId> self = SelfProcessId();
  ASSERT_TRUE(self.ok());
  EXPECT_EQ(self->pid, ::getpid());
  EXPECT_TRUE(ProcessAlive(*self));
  EXPECT_FALSE(ReapProcess(*self).exited);
  EXPECT_FALSE(ProcessAlive({}));
  EXPECT_FALSE(ProcessAlive({-1, 0}));
  EXPECT_TRUE(SignalProcess({}, SIGKILL).ok());
  EXPECT_TRUE(SignalProcess({-1, 0}, SIGKILL, true).ok());
  EXPECT_TRUE(ReapProcess({}).exited);
  EXPECT_GT(ProcessRssBytes(::getpid(), true), 0);
}

TEST(Process, OutputFoldersAndEnvironment) {
  const TempDir dir;
  SpawnOptions options = Shell("echo out; echo err >&2; echo \"$LONGHAUL_X|$HOME\"; pwd -P; cat");
  options.working_dir = dir.path();
  options.stdout_path = dir.File("log");
  options.stderr_path = dir.File("log");
  options.env = {{"LONGHAUL_X", "a=b c"}, {"HOME", "/replaced"}};
  EXPECT_EQ(RunToEnd(options).exit_code, 0);
  const std::string once = "out\nerr\na=b c|/replaced\n" + dir.path() + "\n";
  EXPECT_EQ(*ReadFile(dir.File("log"), 1 << 20), once);
  EXPECT_EQ(RunToEnd(options).exit_code, 0);
  EXPECT_EQ(*ReadFile(dir.File("log"), 1 << 20), once + once);  // appended
}

TEST(Process, RunsOnTheProcessorsItWasGiven) {
  const std::vector<int> ours = ProcessorsOf(0);
  ASSERT_EQ(static_cast<int>(ours.size()), HostCpuThreads());
  SpawnOptions options;
  options.argv = {"sleep", "1000"};
  options.processors = {ours.back()};
  const absl::StatusOr<ProcessId> bound = Spawn(options);
  ASSERT_TRUE(bound.ok()) << bound.status();
  EXPECT_EQ(ProcessorsOf(bound->pid), options.processors);
  options.processors.clear();
  const absl::StatusOr<ProcessId> free = Spawn(options);
  ASSERT_TRUE(free.ok()) << free.status();
  EXPECT_EQ(ProcessorsOf(free->pid), ours);
  for (const ProcessId& id : {*bound, *free}) {
    ASSERT_TRUE(SignalProcess(id, SIGKILL).ok());
    AwaitExit(id.pid);
    EXPECT_TRUE(ReapProcess(id).exited);
    EXPECT_TRUE(ProcessorsOf(id.pid).empty());
  }
}

TEST(Process, InheritsNoDescriptors) {
  const int leaked = ::dup(STDERR_FILENO);  // without close-on-exec
  ASSERT_GT(leaked, 2);
  const int high = ::fcntl(leaked, F_DUPFD, 200);
  SpawnOptions options;
  options.argv = {"ls", "/proc/self/fd"};
  EXPECT_EQ(Output(options), "0\n1\n2\n3\n");  // 3 is the listing itself
  ::close(leaked);
  ::close(high);
}

TEST(Process, WorksWithClosedStandardDescriptors) {
  const TempDir dir;
  const int status = StatusOfForked([&] {
    for (int fd = 0; fd < 3; ++fd) ::close(fd);
    SpawnOptions options = Shell("echo out; echo err >&2; readlink /proc/self/fd/0");
    options.stdout_path = dir.File("out");
    options.stderr_path = dir.File("err");
    const ExitState state = RunToEnd(options);
    SpawnOptions bad;
    bad.argv = {"/absent/program"};
    if (Spawn(bad).status().code() != absl::StatusCode::kNotFound) return 1;
    return state.exit_code == 0 ? 0 : 2;
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(*ReadFile(dir.File("out"), 1000), "out\n/dev/null\n");
  EXPECT_EQ(*ReadFile(dir.File("err"), 1000), "err\n");
}

TEST(Process, ResetsSignals) {
  const auto previous = ::signal(SIGINT, SIG_IGN);
  sigset_t blocked;
  sigset_t before;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &blocked, &before);
  SpawnOptions options;
  options.argv = {"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"};
  const std::string zeros = "\t0000000000000000\n";
  EXPECT_EQ(Output(options), "SigBlk:" + zeros + "SigIgn:" + zeros);
  sigset_t after;
  ::sigprocmask(SIG_SETMASK, &before, &after);
  EXPECT_EQ(::sigismember(&after, SIGTERM), 1);  // ours came back as it was
  EXPECT_EQ(::sigismember(&after, SIGUSR1), 0);
  ::signal(SIGINT, previous);
}

TEST(Process, SpawnErrors) {
  const TempDir dir;
  const auto spawn = [&](const std::string& program) {
    SpawnOptions options;
    options.argv = {program};
    return Spawn(options).status();
  };
  EXPECT_EQ(Spawn({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(spawn("").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(spawn("no-such-program-anywhere").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(spawn(dir.File("absent")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(spawn(dir.path()).code(), absl::StatusCode::kPermissionDenied);
  ASSERT_TRUE(WriteFileAtomic(dir.File("plain"), "not a program").ok());
  EXPECT_EQ(spawn(dir.File("plain")).code(), absl::StatusCode::kPermissionDenied);
  SpawnOptions options = Shell("exit 0");
  options.working_dir = dir.File("nowhere");
  const absl::Status folder = Spawn(options).status();
  EXPECT_EQ(folder.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(folder.message().data(), folder.message().size()).find(dir.File("nowhere")), std::string::npos);
  options = Shell("exit 0");
  options.stdout_path = dir.File("nowhere/log");
  EXPECT_EQ(Spawn(options).status().code(), absl::StatusCode::kNotFound);
  // No failed attempt left a zombie.
  errno = 0;
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Process, RelativeProgramIsOursNotTheWorkingDirs) {
  const TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(dir.File("tool"), "#!/bin/sh\npwd -P\n").ok());
  ASSERT_EQ(::chmod(dir.File("tool").c_str(), 0755), 0);
  char before[4096];
  ASSERT_NE(::getcwd(before, sizeof(before)), nullptr);
  ASSERT_EQ(::chdir(dir.path().c_str()), 0);
  SpawnOptions options;
  options.argv = {"./tool"};
  options.working_dir = "/";
  EXPECT_EQ(Output(options), "/\n");
  ASSERT_EQ(::chdir(before), 0);
}

}  // namespace
}  // namespace longhaul
