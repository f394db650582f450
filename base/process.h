// Child processes that outlive their parent: own process group, no inherited descriptors beyond the three standard
// ones.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longhaul {

// A process is named by pid and kernel start time (clock ticks since boot), so that a reused pid is never mistaken.
struct ProcessId {
  pid_t pid = 0;
  uint64_t start_ticks = 0;
};

struct SpawnOptions {
  std::vector<std::string> argv;                         // argv[0] is a path or a name looked up in PATH
  std::string working_dir;                               // "" = ours
  std::string stdout_path;                               // appended to; "" = /dev/null
  std::string stderr_path;                               // appended to; "" = /dev/null; may equal stdout_path
  std::vector<std::pair<std::string, std::string>> env;  // added to ours
  bool new_session = true;                               // setsid: survives the parent's terminal and death
  std::vector<int> processors;                           // its affinity mask; empty = ours
};

absl::StatusOr<ProcessId> Spawn(const SpawnOptions& options);
absl::StatusOr<ProcessId> SelfProcessId();

// True while the process exists with that start time and is not a zombie.
bool ProcessAlive(const ProcessId& id);
// Sends the signal to the process (to its whole group if `group`), only while ProcessAlive. Gone is OK.
absl::Status SignalProcess(const ProcessId& id, int signal, bool group = false);

struct ExitState {
  bool exited = false;  // false: still running, or not our child
  int exit_code = -1;   // -1 when killed by a signal
  int signal = 0;
};
// waitpid(WNOHANG): collects our own children. A process that is not our child reports exited = !ProcessAlive.
ExitState ReapProcess(const ProcessId& id);

// The processors that any thread of the process may run on, ascending; 0 is our own process. Empty when gone.
std::vector<int> ProcessorsOf(pid_t pid);

// Raises our own limit of open files as far as it goes without privileges. Returns what it is then.
int64_t RaiseOpenFileLimit();
int64_t OpenFileLimit();

// Resident set size in bytes; 0 when gone. `peak` asks for VmHWM.
int64_t ProcessRssBytes(pid_t pid, bool peak = false);
// The part of it that no file backs: what only the process' end gives back. 0 when gone.
int64_t ProcessAnonymousBytes(pid_t pid);

}  // namespace longhaul
