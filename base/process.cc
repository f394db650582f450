#include "base/process.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string_view>

#include "base/env.h"
#include "base/errno_status.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace longhaul {
namespace {

constexpr int64_t kMaxOwnProcFileBytes = 1 << 16;
constexpr int kErrorFd = 3;  // where the child keeps its end of the error pipe

// What the child reports when it cannot become the program.
struct ChildError {
  enum Stage : int { kSetUp, kChangeDir, kExec } stage;
  int error_number;
};

// Everything the child needs, made before fork: between fork and exec only async-signal-safe calls are allowed.
struct ChildPlan {
  std::string program;
  std::vector<std::string> environment;
  std::vector<char*> argv;
  std::vector<char*> envp;
  const char* working_dir = nullptr;
  bool new_session = true;
  std::optional<cpu_set_t> processors;
  // All >= 3, so that moving one to 0, 1 or 2 never overwrites another.
  UniqueFd stdin_fd, stdout_fd, stderr_fd, error_fd;
};

// The descriptor at 3 or above: our own standard descriptors may be closed.
absl::StatusOr<UniqueFd> LiftFd(UniqueFd fd, const std::string& path) {
  if (fd.get() > STDERR_FILENO) return fd;
  UniqueFd lifted(::fcntl(fd.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  if (lifted.get() < 0) return ErrnoStatus("open", path, errno);
  return lifted;
}

absl::StatusOr<UniqueFd> OpenLifted(const std::string& path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ErrnoStatus("open", path, errno);
  return LiftFd(UniqueFd(fd), path);
}

absl::StatusOr<UniqueFd> OpenOutput(const std::string& path) {
  if (path.empty()) return OpenLifted("/dev/null", O_WRONLY);
  return OpenLifted(path, O_WRONLY | O_APPEND | O_CREAT);
}

// An absolute path, since the child changes its folder before exec: relative paths are relative to ours.
absl::StatusOr<std::string> ResolveProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    if (name.front() == '/') return name;
    char cwd[PATH_MAX];
    if (::getcwd(cwd, sizeof(cwd)) == nullptr) return ErrnoStatus("find the folder of", name, errno);
    return JoinPath(cwd, name);
  }
  const char* variable = std::getenv("PATH");
  std::string_view rest = variable == nullptr ? "/usr/local/bin:/usr/bin:/bin" : variable;
  while (!name.empty() && !rest.empty()) {
    const size_t colon = std::min(rest.find(':'), rest.size());
    const std::string candidate = JoinPath(rest.substr(0, colon), name);
    rest.remove_prefix(std::min(colon + 1, rest.size()));
    struct stat info {};
    const bool is_file = ::stat(candidate.c_str(), &info) == 0 && S_ISREG(info.st_mode);
    if (is_file && candidate.front() == '/' && ::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND", "cannot run '" + name + "': no such program in PATH");
}

std::vector<std::string> MergedEnvironment(const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> merged;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    const bool replaced = std::any_of(added.begin(), added.end(), [&](const auto& pair) { return pair.first == name; });
    if (!replaced) merged.emplace_back(text);
  }
  for (const auto& [name, value] : added) merged.push_back(name + "=" + value);
  return merged;
}

// `plan` must stay where it is afterwards: argv and envp point into it and into `options`.
absl::Status FillPlan(const SpawnOptions& options, ChildPlan& plan) {
  if (options.argv.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_COMMAND", "cannot run an empty command");
  }
  LH_ASSIGN_OR_RETURN(plan.program, ResolveProgram(options.argv[0]));
  plan.environment = MergedEnvironment(options.env);
  for (const std::string& argument : options.argv) plan.argv.push_back(const_cast<char*>(argument.c_str()));
  for (const std::string& variable : plan.environment) plan.envp.push_back(const_cast<char*>(variable.c_str()));
  plan.argv.push_back(nullptr);
  plan.envp.push_back(nullptr);
  plan.working_dir = options.working_dir.empty() ? nullptr : options.working_dir.c_str();
  plan.new_session = options.new_session;
  if (!options.processors.empty()) {
    CPU_ZERO(&plan.processors.emplace());
    for (int processor : options.processors) CPU_SET(processor, &*plan.processors);
  }
  LH_ASSIGN_OR_RETURN(plan.stdin_fd, OpenLifted("/dev/null", O_RDONLY));
  LH_ASSIGN_OR_RETURN(plan.stdout_fd, OpenOutput(options.stdout_path));
  LH_ASSIGN_OR_RETURN(plan.stderr_fd, OpenOutput(options.stderr_path));
  return absl::OkStatus();
}

// The rest of the functions up to Spawn run in the child: async-signal-safe calls only, no allocation.

[[noreturn]] void ChildFail(int error_fd, ChildError::Stage stage) {
  const ChildError error{stage, errno};
  ssize_t n = 0;
  do {
    n = ::write(error_fd, &error, sizeof(error));
  } while (n < 0 && errno == EINTR);
  ::_exit(127);
}

void CloseFrom(int first) {
#if defined(SYS_close_range)
  if (::syscall(SYS_close_range, static_cast<unsigned>(first), ~0u, 0u) == 0) return;
#endif
  // Kernels before 5.9. 2^20 is the kernel's default ceiling (fs.nr_open) where the limit says "unlimited".
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const int end = static_cast<int>(std::min<rlim_t>(limit.rlim_max, rlim_t{1} << 20));
  for (int fd = first; fd < end; ++fd) ::close(fd);
}

[[noreturn]] void RunChild(const ChildPlan& plan) {
  int error_fd = plan.error_fd.get();
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);  // KILL and STOP refuse, rightly
  // A group of its own in either case, so that SignalProcess can reach the program's own children.
  if ((plan.new_session ? ::setsid() : ::setpgid(0, 0)) < 0) ChildFail(error_fd, ChildError::kSetUp);
  if (plan.processors.has_value() && ::sched_setaffinity(0, sizeof(cpu_set_t), &*plan.processors) != 0) {
    ChildFail(error_fd, ChildError::kSetUp);
  }
  if (plan.working_dir != nullptr && ::chdir(plan.working_dir) != 0) ChildFail(error_fd, ChildError::kChangeDir);
  if (::dup2(plan.stdin_fd.get(), STDIN_FILENO) < 0 || ::dup2(plan.stdout_fd.get(), STDOUT_FILENO) < 0 ||
      ::dup2(plan.stderr_fd.get(), STDERR_FILENO) < 0) {
    ChildFail(error_fd, ChildError::kSetUp);
  }
  if (error_fd != kErrorFd) {
    if (::dup3(error_fd, kErrorFd, O_CLOEXEC) < 0) ChildFail(error_fd, ChildError::kSetUp);
    error_fd = kErrorFd;
  }
  CloseFrom(kErrorFd + 1);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve(plan.program.c_str(), plan.argv.data(), plan.envp.data());
  ChildFail(error_fd, ChildError::kExec);
}

// Back in the parent. Waits until the child has become the program (end of file) or has said why not.
absl::Status AwaitExec(int read_fd, pid_t pid, const ChildPlan& plan) {
  ChildError error{};
  ssize_t n = 0;
  do {
    n = ::read(read_fd, &error, sizeof(error));  // atomic: smaller than PIPE_BUF
  } while (n < 0 && errno == EINTR);
  if (n == 0) return absl::OkStatus();
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (n != sizeof(error)) return ErrnoStatus("start", plan.program, EIO);
  if (error.stage == ChildError::kChangeDir) return ErrnoStatus("enter folder", plan.working_dir, error.error_number);
  const bool exec = error.stage == ChildError::kExec;
  return ErrnoStatus(exec ? "run" : "prepare a process for", plan.program, error.error_number);
}

struct ProcStat {
  char state = '?';
  uint64_t start_ticks = 0;
};

std::optional<ProcStat> ReadProcStat(pid_t pid) {
  if (pid <= 0) return std::nullopt;
  const absl::StatusOr<std::string> text = ReadFile("/proc/" + std::to_string(pid) + "/stat", kMaxOwnProcFileBytes);
  if (!text.ok()) return std::nullopt;
  // "pid (name) state ppid ...": the name may hold spaces and parentheses, so count from the last ')'.
  const size_t name_end = text->rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= text->size()) return std::nullopt;
  std::string_view rest = std::string_view(*text).substr(name_end + 2);
  ProcStat stat;
  stat.state = rest.front();
  constexpr int kStartField = 22;  // proc(5), counted from 1; the state is field 3
  for (int field = 3; field < kStartField; ++field) {
    const size_t space = rest.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    rest.remove_prefix(space + 1);
  }
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), stat.start_ticks);
  if (error != std::errc{}) return std::nullopt;
  return stat;
}

absl::StatusOr<ProcessId> IdentifyProcess(pid_t pid) {
  const std::optional<ProcStat> stat = ReadProcStat(pid);
  if (!stat.has_value()) {
    return MakeError(absl::StatusCode::kNotFound, "PROCESS_GONE", "no process " + std::to_string(pid));
  }
  return ProcessId{pid, stat->start_ticks};
}

// Sends through a descriptor of the process where the kernel has them: the pid cannot be reused between the check of
// its start time and the signal.
int SendSignal(const ProcessId& id, int signal) {
#if defined(SYS_pidfd_open) && defined(SYS_pidfd_send_signal)
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, id.pid, 0u)));
  if (pidfd.get() >= 0) {
    if (!ProcessAlive(id)) return 0;
    return static_cast<int>(::syscall(SYS_pidfd_send_signal, pidfd.get(), signal, nullptr, 0u));
  }
#endif
  return ::kill(id.pid, signal);
}

}  // namespace

absl::StatusOr<ProcessId> Spawn(const SpawnOptions& options) {
  ChildPlan plan;
  LH_RETURN_IF_ERROR(FillPlan(options, plan));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("open a pipe for", plan.program, errno);
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  LH_ASSIGN_OR_RETURN(plan.error_fd, LiftFd(std::move(write_end), plan.program));

  // No signal may run one of our handlers in the child before it has reset them.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) RunChild(plan);
  const int fork_error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return ErrnoStatus("start a process for", plan.program, fork_error);

  plan.error_fd.Reset();  // ours; the pipe ends when the child's closes
  // Nobody but us collects the child, so its entry stays readable even if it has ended by now.
  const absl::StatusOr<ProcessId> id = IdentifyProcess(pid);
  LH_RETURN_IF_ERROR(AwaitExec(read_end.get(), pid, plan));
  return id;
}

absl::StatusOr<ProcessId> SelfProcessId() { return IdentifyProcess(::getpid()); }

bool ProcessAlive(const ProcessId& id) {
  const std::optional<ProcStat> stat = ReadProcStat(id.pid);
  if (!stat.has_value() || stat->start_ticks != id.start_ticks) return false;
  return stat->state != 'Z' && stat->state != 'X' && stat->state != 'x';
}

absl::Status SignalProcess(const ProcessId& id, int signal, bool group) {
  if (!ProcessAlive(id)) return absl::OkStatus();
  const int result = group ? ::kill(-id.pid, signal) : SendSignal(id, signal);
  if (result == 0 || errno == ESRCH) return absl::OkStatus();
  return ErrnoStatus("send signal " + std::to_string(signal) + " to", "process " + std::to_string(id.pid), errno);
}

ExitState ReapProcess(const ProcessId& id) {
  ExitState state;
  // A zombie still shows its start time; another start time means that ours was collected long ago.
  const std::optional<ProcStat> stat = ReadProcStat(id.pid);
  if (!stat.has_value() || stat->start_ticks != id.start_ticks) {
    state.exited = true;
    return state;
  }
  int status = 0;
  pid_t collected = 0;
  do {
    collected = ::waitpid(id.pid, &status, WNOHANG);
  } while (collected < 0 && errno == EINTR);
  if (collected == 0) return state;
  if (collected < 0) {
    state.exited = !ProcessAlive(id);
    return state;
  }
  state.exited = true;
  if (WIFEXITED(status)) state.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) state.signal = WTERMSIG(status);
  return state;
}

std::vector<int> ProcessorsOf(pid_t pid) {
  cpu_set_t all;
  CPU_ZERO(&all);
  const absl::StatusOr<std::vector<std::string>> threads =
      ListDir(pid == 0 ? "/proc/self/task" : "/proc/" + std::to_string(pid) + "/task");
  for (const std::string& name : threads.value_or(std::vector<std::string>())) {
    cpu_set_t mask;
    if (::sched_getaffinity(static_cast<pid_t>(std::atoi(name.c_str())), sizeof(mask), &mask) != 0) continue;  // ended
    CPU_OR(&all, &all, &mask);
  }
  std::vector<int> processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &all)) processors.push_back(i);
  }
  return processors;
}

namespace {

// A line of /proc/<pid>/status in kB; 0 where it lacks.
int64_t StatusBytes(pid_t pid, std::string_view key) {
  const absl::StatusOr<std::string> text = ReadFile("/proc/" + std::to_string(pid) + "/status", kMaxOwnProcFileBytes);
  if (!text.ok()) return 0;
  size_t at = text->find(key);
  if (at == std::string::npos) return 0;  // a zombie has no memory
  at = text->find_first_not_of(" \t", at + key.size());
  if (at == std::string::npos) return 0;
  int64_t kib = 0;
  std::from_chars(text->data() + at, text->data() + text->size(), kib);
  return kib * 1024;
}

}  // namespace

int64_t ProcessRssBytes(pid_t pid, bool peak) { return StatusBytes(pid, peak ? "\nVmHWM:" : "\nVmRSS:"); }

int64_t ProcessAnonymousBytes(pid_t pid) { return StatusBytes(pid, "\nRssAnon:"); }

int64_t RaiseOpenFileLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  return OpenFileLimit();
}

int64_t OpenFileLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<int64_t>::max()));
}

}  // namespace longhaul
