// longhaul-worker: one host's agent. Signals: the first SIGTERM or SIGINT drains (every attempt writes a checkpoint and
// is handed back), the second leaves the trainers running for the next agent.
#include <pthread.h>
#include <sys/stat.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/net_address.h"
#include "base/program/command_line.h"
#include "base/program/error_text.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "clients/channel/channel_flags.h"
#include "worker/agent/agent_core.h"
#include "worker/agent/grpc_client.h"
#include "worker/agent/host_models.h"
#include "worker/agent/inventory.h"
#include "worker/agent/mailbox.h"
#include "worker/agent/task_pool.h"

namespace longhaul::agent {
namespace {

struct Flags {
  channel::ChannelOptions scheduler = {.address = "127.0.0.1:7070"};
  std::string state_dir;
  std::string worker_id;
  std::vector<std::string> models;
  std::string host_bytes;
  int cpu_threads = 0;
  int drain_seconds = 60;
};

void LogLine(const std::string& line) {
  std::fprintf(stderr, "%s longhaul-worker: %s\n", FormatTimestamp(RealClock().WallMicros()).c_str(), line.c_str());
}

// Waits for SIGTERM and SIGINT on a thread of its own; SIGUSR2, from ourselves, ends it. They must be blocked before
// any other thread starts.
class SignalThread {
 public:
  SignalThread(Mailbox* mailbox, std::atomic<bool>* drain, std::atomic<bool>* stop) {
    thread_ = std::thread([set = Set(), mailbox, drain, stop] {
      int signal = 0;
      while (::sigwait(&set, &signal) == 0 && signal != SIGUSR2) {
        if (drain->exchange(true)) stop->store(true);
        mailbox->Wake();
      }
    });
  }
  ~SignalThread() {
    ::pthread_kill(thread_.native_handle(), SIGUSR2);
    thread_.join();
  }
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;

  static sigset_t Set() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR2}) ::sigaddset(&set, signal);
    return set;
  }

 private:
  std::thread thread_;
};

std::vector<std::string*> PathsOf(Flags* flags) {
  std::vector<std::string*> paths = {&flags->state_dir};
  for (std::string& models : flags->models) paths.push_back(&models);
  return paths;
}

// The id given, else the one of this state folder, made the first time.
absl::StatusOr<std::string> WorkerId(const Flags& flags) {
  if (!flags.worker_id.empty()) return flags.worker_id;
  const std::string path = JoinPath(flags.state_dir, "worker-id");
  if (FileExists(path)) {
    LH_ASSIGN_OR_RETURN(std::string id, ReadFile(path, 256));
    while (!id.empty() && id.back() == '\n') id.pop_back();
    return id;
  }
  const std::string id = HostName() + "-" + RandomId().substr(0, 8);
  LH_RETURN_IF_ERROR(WriteFileAtomic(path, id + "\n"));
  return id;
}

absl::Status Run(const Flags& flags) {
  Mailbox mailbox;
  std::atomic<bool> drain = false;
  std::atomic<bool> stop = false;
  const SignalThread signals(&mailbox, &drain, &stop);
  LH_RETURN_IF_ERROR(CheckTarget("--scheduler", flags.scheduler.address));
  LH_RETURN_IF_ERROR(CreateDirs(flags.state_dir));
  const auto lock = FileLock::Acquire(JoinPath(flags.state_dir, "lock"));
  if (!lock.ok()) return lock.status();
  AgentOptions options;
  options.state_dir = flags.state_dir;
  options.build = LONGHAUL_VERSION;
  options.drain_grace_ms = int64_t{1'000} * flags.drain_seconds;
  options.trainer_path = JoinPath(ExecutableDir(), "longhaul-train");
  if (!FileExists(options.trainer_path)) {
    return MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                     options.trainer_path + " is absent; longhaul-train must lie beside longhaul-worker");
  }
  LH_ASSIGN_OR_RETURN(options.worker_id, WorkerId(flags));
  InventoryOptions wanted;
  wanted.model_dirs = flags.models;
  wanted.state_dir = flags.state_dir;
  wanted.cpu_threads = flags.cpu_threads;
  wanted.trainer_path = options.trainer_path;
  if (!flags.host_bytes.empty()) {
    const auto bytes = ParseBytes(flags.host_bytes);
    if (!bytes.ok()) return InvalidField("--host-bytes", std::string(bytes.status().message()));
    wanted.host_bytes = *bytes;
  }
  std::atomic<bool> ended = false;
  // Once the agent runs, the looks' thread's.
  HostModels models(wanted, LogLine, [&] { return drain.load() || ended.load(); });
  // Before there is an agent there is nothing to drain: a signal ends it, however long the reading of a model takes.
  auto taken = models.AtStart();
  if (absl::IsCancelled(taken.status())) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(Inventory inventory, std::move(taken));
  if (inventory.proto.models_size() == 0 && inventory.unread.empty()) {
    LogLine("no models under --models; this worker gets no jobs");
  }
  for (const std::string& path : inventory.unread) {
    LogLine("model " + path + " is new and large: it is offered once it has been read");
  }
  for (const v1::Model& model : inventory.proto.models()) {
    LogLine("model " + model.name() + " (" + model.storage() + ", " + FormatBytes(model.size_bytes()) + ")");
  }
  for (const v1::Device& device : inventory.proto.devices()) {
    if (device.facts().kind() != v1::DEVICE_KIND_CUDA) continue;
    LogLine("offers GPU " + device.id() + ", class " + device.facts().device_class() + ", " +
            FormatBytes(device.facts().device_bytes()));
  }
  LogLine("offers " + FormatBytes(inventory.proto.host_bytes_total()) + " of RAM and " +
          std::to_string(inventory.proto.cpu_threads_total()) + " CPU threads");
  options.inventory = std::move(inventory.proto);
  options.models = ByDigest(inventory.models);
  options.look_for_models = [&models](bool anyway) { return models.Look(anyway); };

  const RealClock clock;
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcSchedulerClient> client, GrpcSchedulerClient::Open(flags.scheduler));
  TaskPool fetches(limits::kMaxFetchThreads);
  TaskPool uploads(limits::kMaxUploadThreads);
  TaskPool logs(1);
  TaskPool looks(1);
  LogLine("worker " + options.worker_id + " for the scheduler at " + flags.scheduler.address);
  AgentCore core(std::move(options),
                 AgentParts{&clock, client.get(), &mailbox, &fetches, &uploads, &logs, &looks, LogLine});
  absl::Status status = core.Recover();
  if (status.ok()) status = core.Run(stop, drain);
  ended = true;
  // Ends what blocks the pools' threads, and no answer comes after the mailbox is gone.
  client->Shutdown();
  return status;
}

int Main(int argc, char** argv) {
  // Datasets, adapters, logs: nobody else's business on this machine.
  ::umask(0077);
  const sigset_t blocked = SignalThread::Set();
  ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  Flags flags;
  CLI::App app("longhaul-worker: offers this machine to a Longhaul scheduler", "longhaul-worker");
  app.set_version_flag("--version", LONGHAUL_VERSION);
  app.footer("\nExit codes: 0 stopped in order, 1 it cannot run, 2 a flag or its value is wrong.");
  channel::ReadEnvironment([](const char* name) -> const char* { return std::getenv(name); }, &flags.scheduler);
  app.add_option("--scheduler", flags.scheduler.address, "HOST:PORT of longhauld")->capture_default_str();
  channel::AddChannelFlags(app, &flags.scheduler);
  app.add_option("--state-dir", flags.state_dir, "Folder of the attempts; survives restarts")->required();
  app.add_option("--models", flags.models, "A folder of models (.gguf files, Hugging Face folders), or one model");
  app.add_option("--worker-id", flags.worker_id, "Stable name of this worker; by default made once and kept");
  app.add_option("--host-bytes", flags.host_bytes,
                 "RAM that attempts may use (\"8GiB\"); by default what is free, less 1 GiB");
  app.add_option("--cpu-threads", flags.cpu_threads, "Threads that attempts may use; by default all");
  app.add_option("--drain-seconds", flags.drain_seconds, "How long SIGTERM waits for checkpoints")
      ->capture_default_str();
  if (const std::optional<int> code = program::ParseCommandLine(app, argc, argv)) return *code;
  channel::SilenceGrpcLog();
  // A trainer works in its own folder: what it is handed must not depend on ours.
  std::error_code gone;  // the working folder; the paths stay as they are then, and opening them fails
  for (std::string* path : PathsOf(&flags)) {
    const std::filesystem::path absolute = std::filesystem::absolute(*path, gone).lexically_normal();
    if (!gone) *path = absolute.string();
  }
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::cerr << program::DescribeErrorInLine("longhaul-worker", program::LocalFileError(status),
                                            "`longhaul-worker --help` lists the flags; README.md tells how it is run");
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace
}  // namespace longhaul::agent

int main(int argc, char** argv) { return longhaul::agent::Main(argc, argv); }
