// longhaul-train: one attempt, one process. `longhaul-train DIR` runs the attempt directory that an agent has made;
// `longhaul-train --job job.yaml --out DIR` makes one by itself. `longhaul-train --devices list` tells the agent of
// this machine's GPUs. Exit codes: worker/attempt/exit_codes.h.
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/process.h"
#include "base/program/command_line.h"
#include "base/program/error_text.h"
#include "base/status_macros.h"
#include "wire/device_probe.h"
#include "wire/job_file.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/attempt/exit_codes.h"
#include "worker/trainer/events.h"
#include "worker/trainer/exceptions.h"
#include "worker/trainer/local_job.h"
#include "worker/trainer/probe_devices.h"
#include "worker/trainer/run_attempt.h"
#include "worker/trainer/signals.h"

namespace longhaul::trainer {
namespace {

struct Flags {
  std::string dir;
  bool validate = false;
  LocalJobOptions local;
  std::string job_file;
  std::string host_bytes;
  std::string devices;  // "", "list" or "measure"
};

void LogLine(const std::string& line) {
  std::fprintf(stderr, "%s %s\n", FormatTimestamp(RealClock().WallMicros()).c_str(), line.c_str());
}

int Complain(const absl::Status& status, int code) {
  std::cerr << program::DescribeErrorInLine("longhaul-train", program::LocalFileError(status),
                                            "`longhaul-train --help` lists the flags");
  return ErrorReason(status) == "HOST_OOM" ? attempt::kExitHostOom : code;
}

// The boundary of the process: what is thrown beneath becomes an exit like any other.
v1::TrainerExit RunAndCatch(const AttemptContext& context) {
  try {
    return RunAttempt(context);
  } catch (const std::exception& error) {
    return ExitOfException(error);
  }
}

int RunInDir(AttemptContext context) {
  const auto lock = FileLock::Acquire(context.dir.LockPath());
  if (!lock.ok()) {
    return Complain(lock.status(),
                    ErrorReason(lock.status()) == "LOCKED" ? attempt::kExitFolderLocked : attempt::kExitFailed);
  }
  const auto self = SelfProcessId();
  if (!self.ok()) return Complain(self.status(), attempt::kExitFailed);
  if (const absl::Status written = context.dir.WritePid(*self); !written.ok())
    return Complain(written, attempt::kExitFailed);
  auto events = Events::Open(context.dir.EventsPath(), context.clock);
  if (!events.ok()) return Complain(events.status(), attempt::kExitFailed);
  context.events = &*events;
  const v1::TrainerExit exit = RunAndCatch(context);
  v1::TrainerEvent event;
  *event.mutable_exit() = exit;
  events->AddDurable(event);
  if (!exit.message().empty()) LogLine(exit.message());
  return ExitCodeOf(exit);
}

int RunAttemptDir(const Flags& flags, AttemptContext context) {
  auto spec = context.dir.ReadSpec();
  if (!spec.ok()) return Complain(spec.status(), attempt::kExitUsage);
  context.spec = *std::move(spec);
  if (flags.validate) context.spec.set_kind(v1::ATTEMPT_KIND_VALIDATE);
  context.paths.model = context.spec.model_path();
  context.paths.dataset = context.dir.DatasetPath();
  if (context.spec.spec().has_eval_dataset()) context.paths.eval_dataset = context.dir.EvalDatasetPath();
  return RunInDir(std::move(context));
}

// What only a scheduler uses of a job file (labels, suffix, retry) is read and ignored.
absl::StatusOr<v1::JobSpec> ReadJobSpec(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const YAML::Node root, wire::ReadJobFile(path));
  LH_ASSIGN_OR_RETURN(const v1::CreateFineTuneJobRequest request, wire::JobRequestFromYaml(root, path));
  return request.spec();
}

int RunLocal(const Flags& flags, AttemptContext context) {
  LocalJobOptions options = flags.local;
  if (!flags.host_bytes.empty()) {
    const auto bytes = ParseBytes(flags.host_bytes);
    if (!bytes.ok()) return Complain(Annotate(bytes.status(), "--host-bytes"), attempt::kExitUsage);
    options.host_bytes = *bytes;
  }
  if (!flags.job_file.empty()) {
    auto spec = ReadJobSpec(flags.job_file);
    if (!spec.ok()) return Complain(spec.status(), attempt::kExitUsage);
    options.spec = *std::move(spec);
  }
  auto job = PrepareLocalJob(options, LogLine);
  if (!job.ok()) return Complain(job.status(), attempt::kExitUsage);
  context.dir = attempt::AttemptDir(options.out_dir);
  context.spec = std::move(job->spec);
  context.paths = std::move(job->paths);
  context.alone = true;
  const std::string adapter = context.dir.ArtifactDir();
  const int code = RunInDir(std::move(context));
  if (code == attempt::kExitSucceeded) std::printf("%s\n", adapter.c_str());
  return code;
}

int PrintDevices(bool measure) {
  std::printf("%s\n", wire::DeviceProbeToJson(ProbeDevices(measure)).c_str());
  return attempt::kExitSucceeded;
}

int Main(int argc, char** argv) {
  ExitOnHostOom();
  SignalInbox signals;  // before any thread
  const RealClock clock;
  Flags flags;
  CLI::App app("longhaul-train: runs one fine-tuning attempt", "longhaul-train");
  app.set_version_flag("--version", LONGHAUL_VERSION);
  auto* dir = app.add_option("dir", flags.dir, "Attempt directory (spec.textproto, inputs/)");
  app.add_flag("--validate", flags.validate, "Only read the data and report on it");
  auto* out = app.add_option("--out", flags.local.out_dir, "New folder for a run of its own")->excludes(dir);
  app.add_option("--job", flags.job_file, "Job file (YAML)")->needs(out);
  app.add_option("--model", flags.local.model, "A .gguf file or a model folder")->needs(out);
  app.add_option("--data", flags.local.dataset, "JSONL to train on")->needs(out);
  app.add_option("--eval-data", flags.local.eval_dataset, "JSONL held out")->needs(out);
  app.add_option("--host-bytes", flags.host_bytes, "RAM to plan for (\"8GiB\"); by default what is free")->needs(out);
  app.add_option("--device", flags.local.device, "cpu, cuda (the first GPU), or a GPU's UUID")
      ->needs(out)
      ->capture_default_str();
  app.add_option("--devices", flags.devices, "Print this machine's GPUs as JSON; measure: with their speed")
      ->check(CLI::IsMember({"list", "measure"}))
      ->excludes(dir)
      ->excludes(out);
  if (const std::optional<int> code = program::ParseCommandLine(app, argc, argv)) {
    return *code == program::kOk ? attempt::kExitSucceeded : attempt::kExitUsage;
  }
  if (!flags.devices.empty()) return PrintDevices(flags.devices == "measure");
  AttemptContext context{attempt::AttemptDir(flags.dir), {}, {}, &clock, &signals, nullptr, LogLine, false};
  if (!flags.local.out_dir.empty()) return RunLocal(flags, std::move(context));
  if (!flags.dir.empty()) return RunAttemptDir(flags, std::move(context));
  return Complain(MakeError(absl::StatusCode::kInvalidArgument, "USAGE",
                            "name an attempt directory, or --out with --job or --model and --data"),
                  attempt::kExitUsage);
}

}  // namespace
}  // namespace longhaul::trainer

int main(int argc, char** argv) { return longhaul::trainer::Main(argc, argv); }
