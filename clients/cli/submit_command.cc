#include <algorithm>
#include <memory>
#include <ostream>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/format.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "clients/cli/blob_transfer.h"
#include "clients/cli/commands.h"
#include "clients/cli/follow_view.h"
#include "clients/cli/job_flags.h"
#include "clients/cli/watch.h"
#include "wire/job_file.h"
#include "wire/job_spec.h"

namespace longhaul::cli {
namespace {

// A scheduler that is restarted, or whose machine is, is back by then.
constexpr char kCreateRetry[] = "30s";
// A question changes nothing: who asks it may ask again.
constexpr int64_t kQuestionRetryMs = 3'000;
constexpr int64_t kFirstBackoffMs = 200;
constexpr int64_t kMaxBackoffMs = 3'000;

struct SubmitOptions {
  std::string file;
  JobFlags flags;
  std::string request_id;
  std::string retry_for = kCreateRetry;
  bool wait = false;
  bool follow = false;
  bool dry_run = false;
};

absl::StatusOr<v1::CreateFineTuneJobRequest> BuildRequest(const SubmitOptions& options) {
  YAML::Node root(YAML::NodeType::Map);
  if (!options.file.empty()) {
    absl::StatusOr<YAML::Node> read = wire::ReadJobFile(options.file);
    if (!read.ok()) return LocalFileError(read.status());
    root = *std::move(read);
  }
  LH_RETURN_IF_ERROR(options.flags.Apply(root));
  return wire::JobRequestFromYaml(root, options.file.empty() ? "command line" : options.file);
}

bool IsLocal(const v1::Dataset& dataset) { return dataset.sha256().empty() && !dataset.file_name().empty(); }

// A file of this machine, and the dataset of the spec that it becomes.
struct LocalDataset {
  const char* field;
  std::string path;
  v1::Dataset* dataset;
};

// What is missing is told in the words of who types the command.
absl::Status CheckGiven(const v1::JobSpec& spec) {
  std::vector<FieldViolation> missing;
  if (spec.model().empty()) missing.push_back({"--model", "is missing; give a model that a worker has"});
  if (!spec.has_dataset()) missing.push_back({"--data", "is missing; give a JSONL file"});
  if (missing.empty()) return absl::OkStatus();
  std::string message;
  for (const FieldViolation& one : missing) {
    message += (message.empty() ? "" : "; ") + one.field + " " + one.description;
  }
  return WithAdvice(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", message, std::move(missing)),
                    "longhaul submit --model NAME --data FILE, or both in a job file: longhaul submit -f FILE; "
                    "`longhaul workers -o wide` lists the models");
}

// Everything that can be said without the server. The pointers are into `spec`.
absl::StatusOr<std::vector<LocalDataset>> PrepareDatasets(v1::JobSpec* spec) {
  LH_RETURN_IF_ERROR(CheckGiven(*spec));
  std::vector<LocalDataset> local;
  if (IsLocal(spec->dataset())) local.push_back({"spec.dataset", spec->dataset().file_name(), spec->mutable_dataset()});
  if (spec->has_eval_dataset() && IsLocal(spec->eval_dataset())) {
    local.push_back({"spec.eval_dataset", spec->eval_dataset().file_name(), spec->mutable_eval_dataset()});
  }
  for (const LocalDataset& one : local) LH_RETURN_IF_ERROR(DescribeDataset(one.field, one.path, one.dataset));
  LH_RETURN_IF_ERROR(wire::ValidateJobSpec(*spec, nullptr));
  return local;
}

// The request id makes a repeat harmless, so a scheduler that restarts between upload and Create costs nothing.
absl::StatusOr<v1::Job> Create(Context& context, const v1::CreateFineTuneJobRequest& request, int64_t retry_ms) {
  Client& client = context.client();
  int64_t backoff_ms = kFirstBackoffMs;
  const int64_t until_ms = context.env.clock->BootNanos() / kNanosPerMs + retry_ms;
  for (bool told = false;; told = true) {
    auto job = client.Call(client.jobs(), &v1::FineTuneService::Stub::CreateFineTuneJob, request);
    if (job.ok() || !IsConnectionError(job.status())) return job;
    const int64_t left_ms = until_ms - context.env.clock->BootNanos() / kNanosPerMs;
    if (left_ms <= 0) return job;
    if (!told && !request.validate_only()) {
      *context.env.err << job.status().message() << "; asking again for "
                       << FormatDuration(static_cast<double>(left_ms) / 1000) << "\n";
    }
    if (!client.WaitToTryAgain(std::min(backoff_ms, left_ms))) return client.Error(grpc::Status::CANCELLED);
    backoff_ms = std::min(2 * backoff_ms, kMaxBackoffMs);
  }
}

// Its answer may have been lost alone: who types the command again, with an id that was made up for it, has two jobs.
absl::StatusOr<v1::Job> CreateOrTellHowToRepeat(Context& context, const v1::CreateFineTuneJobRequest& request,
                                                int64_t retry_ms) {
  auto job = Create(context, request, retry_ms);
  const absl::Status& status = job.status();
  if (IsConnectionError(status) || absl::IsDeadlineExceeded(status) || ErrorReason(status) == "INTERRUPTED") {
    *context.env.err << "whether there is a job now is not known; the same command with --request-id "
                     << request.request_id() << " makes it or finds it, and never a second one\n";
  }
  return job;
}

// What the scheduler would refuse anyway, an unknown model or a job that fits nowhere, is said before a byte is sent.
absl::Status UploadDatasets(Context& context, const v1::CreateFineTuneJobRequest& request,
                            const std::vector<LocalDataset>& local, int64_t retry_ms) {
  bool checked = false;
  for (const LocalDataset& one : local) {
    LH_ASSIGN_OR_RETURN(const bool missing, NeedsUpload(context.client(), *one.dataset));
    if (!missing) continue;
    if (!std::exchange(checked, true)) {
      v1::CreateFineTuneJobRequest check = request;
      check.clear_request_id();
      check.set_validate_only(true);
      const absl::Status checked_so_far = Create(context, check, kQuestionRetryMs).status();
      // (An older scheduler wants the data for this question, too.)
      if (!checked_so_far.ok() && ErrorReason(checked_so_far) != "DATASET_NOT_UPLOADED") return checked_so_far;
    }
    LH_RETURN_IF_ERROR(UploadDataset(context.client(), one.path, *one.dataset, retry_ms));
  }
  return absl::OkStatus();
}

// On stdout there is one message: the job as created, or, for who waits, as it ended.
void PrintCreated(Context& context, const v1::Job& job, bool waits, bool follows) {
  if (context.structured()) {
    if (!waits && !follows) PrintMessage(job, context.output, *context.env.out);
  } else {
    *context.env.out << job.id() << "\n";
  }
  context.env.out->flush();
  if (follows || context.output == OutputFormat::kName) return;
  *context.env.err << "submitted; next: longhaul watch " << job.id() << "; longhaul get " << job.id()
                   << "; longhaul cancel " << job.id() << "\n";
}

ExitCode Ended(Context& context, const v1::Job& job) {
  if (context.structured()) PrintMessage(job, context.output, *context.env.out);
  PrintOutcome(job, *context.env.err);
  return ExitCodeForState(job.state());
}

absl::StatusOr<ExitCode> Wait(Context& context, const std::string& id) {
  WatchOptions watch;
  watch.id = id;
  watch.known_reachable = true;
  WatchSink quiet;
  const auto job = WatchToEnd(context.client(), watch, quiet);
  if (!job.ok() && ErrorReason(job.status()) == "INTERRUPTED") {
    *context.env.err << "detached; the job goes on. Come back: longhaul wait " << id << "\n";
    return kInterrupted;
  }
  LH_RETURN_IF_ERROR(job.status());
  return Ended(context, *job);
}

absl::StatusOr<ExitCode> FollowJob(Context& context, const std::string& id) {
  WatchOptions watch;
  watch.id = id;
  watch.after_sequence = 0;
  watch.known_reachable = true;
  FollowView view(context.env, *context.env.err, context.env.err_is_terminal, /*from_start=*/true);
  const auto job = WatchToEnd(context.client(), watch, view);
  view.Clear();
  if (!job.ok() && ErrorReason(job.status()) == "INTERRUPTED") {
    *context.env.err << "detached; the job goes on. Come back: longhaul watch " << id << "; stop it: longhaul cancel "
                     << id << "\n";
    return kInterrupted;
  }
  LH_RETURN_IF_ERROR(job.status());
  return Ended(context, *job);
}

// Data that the spec names by their hash are at the scheduler, or the job cannot be made.
absl::Status CheckUploaded(Context& context, const char* field, const v1::Dataset& dataset,
                           const std::vector<LocalDataset>& local) {
  for (const LocalDataset& one : local) {
    if (one.dataset == &dataset) return absl::OkStatus();  // a file of this machine, which a submit sends
  }
  LH_ASSIGN_OR_RETURN(const bool missing, NeedsUpload(context.client(), dataset));
  if (!missing) return absl::OkStatus();
  const std::string what = "names data that the scheduler does not have: " + dataset.sha256() + " of " +
                           std::to_string(dataset.size_bytes()) + " bytes";
  return WithAdvice(MakeError(absl::StatusCode::kFailedPrecondition, "DATASET_NOT_UPLOADED",
                              std::string(field) + " " + what, {{field, what}}),
                    "give the file itself, which is uploaded: file_name in the job file, or --data FILE");
}

absl::StatusOr<ExitCode> DryRun(Context& context, const v1::CreateFineTuneJobRequest& request,
                                const std::vector<LocalDataset>& local) {
  LH_ASSIGN_OR_RETURN(const v1::Job job, Create(context, request, kQuestionRetryMs));
  const v1::JobSpec& spec = request.spec();
  LH_RETURN_IF_ERROR(CheckUploaded(context, "spec.dataset", spec.dataset(), local));
  if (spec.has_eval_dataset()) {
    LH_RETURN_IF_ERROR(CheckUploaded(context, "spec.eval_dataset", spec.eval_dataset(), local));
  }
  if (context.structured()) {
    PrintMessage(job, context.output, *context.env.out);
  } else {
    PrintJob(job, context.env, *context.env.out);
  }
  *context.env.err
      << "the job is valid and fits; nothing was uploaded or stored. Its data are read when it runs, or by "
         "`longhaul data preview`\n";
  return kOk;
}

absl::StatusOr<ExitCode> Submit(Context& context, const SubmitOptions& options) {
  LH_ASSIGN_OR_RETURN(const int64_t retry_ms, ParseDurationMs("--retry-for", options.retry_for));
  LH_ASSIGN_OR_RETURN(v1::CreateFineTuneJobRequest request, BuildRequest(options));
  LH_ASSIGN_OR_RETURN(const std::vector<LocalDataset> local, PrepareDatasets(request.mutable_spec()));
  if (!options.request_id.empty()) request.set_request_id(options.request_id);
  if (options.dry_run) request.set_validate_only(true);
  if (request.validate_only()) return DryRun(context, request, local);
  if (request.request_id().empty()) request.set_request_id("cli-" + RandomId());
  LH_RETURN_IF_ERROR(UploadDatasets(context, request, local, retry_ms));
  LH_ASSIGN_OR_RETURN(const v1::Job job, CreateOrTellHowToRepeat(context, request, retry_ms));
  PrintCreated(context, job, options.wait, options.follow);
  if (options.follow) return FollowJob(context, job.id());
  if (options.wait) return Wait(context, job.id());
  return kOk;
}

}  // namespace

void AddSubmitCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("submit", "Submit a fine-tuning job; prints its id");
  const auto options = std::make_shared<SubmitOptions>();
  command->add_option("-f,--file", options->file, "job file, YAML or JSON; flags override it")->type_name("FILE");
  options->flags.Register(*command);
  command->add_option("--request-id", options->request_id,
                      "makes a repeat harmless: the same id with the same job is one job (default a random one)");
  command->add_option(
      "--retry-for", options->retry_for,
      "where the scheduler goes away after it has answered once, go on with the upload and ask for the job so "
      "long: 90, 30m, 2h; 0 = once (default 30s)");
  command->add_flag("--dry-run", options->dry_run, "make every check and the estimate, and no job");
  CLI::Option* wait = command->add_flag("--wait", options->wait, "return when the job has ended, with its exit code");
  command->add_flag("--follow", options->follow, "as --wait, with live progress; Ctrl-C detaches")->excludes(wait);
  command->callback([&context, options] {
    context.action = [&context, options]() -> absl::StatusOr<ExitCode> {
      absl::StatusOr<ExitCode> code = Submit(context, *options);
      if (!code.ok()) return options->flags.NameFlags(code.status());
      return code;
    };
  });
}

}  // namespace longhaul::cli
