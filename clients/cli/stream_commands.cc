// watch, wait, logs.
#include <cmath>
#include <memory>
#include <ostream>

#include "base/error.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/follow_view.h"
#include "clients/cli/watch.h"

namespace longhaul::cli {
namespace {

constexpr int64_t kLogRetryMs = 500;
constexpr int kLogTries = 120;

}  // namespace

absl::StatusOr<int64_t> ParseDurationMs(const std::string& flag, const std::string& text) {
  size_t used = 0;
  double value = -1;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  double seconds = -1;
  if (unit.empty() || unit == "s") seconds = 1;
  if (unit == "ms") seconds = 0.001;
  if (unit == "m") seconds = 60;
  if (unit == "h") seconds = 3600;
  if (used == 0 || seconds < 0 || !std::isfinite(value) || value < 0 || value * seconds > 1e9) {
    return InvalidField(flag, "is '" + text + "'; must be seconds, or a number with ms, s, m or h");
  }
  return static_cast<int64_t>(value * seconds * 1000);
}

namespace {

absl::StatusOr<ExitCode> Watch(Context& context, const std::string& text, int64_t after_sequence, bool has_cursor) {
  LH_ASSIGN_OR_RETURN(const v1::Job found, context.client().FindJob(text));
  WatchOptions watch;
  watch.id = found.id();
  watch.known_reachable = true;
  if (has_cursor) watch.after_sequence = after_sequence;
  FollowView lines(context.env, *context.env.out, context.env.out_is_terminal, has_cursor && after_sequence == 0);
  JsonLinesView json(context.env);
  WatchSink& sink = context.output == OutputFormat::kJson ? static_cast<WatchSink&>(json) : lines;
  const auto job = WatchToEnd(context.client(), watch, sink);
  lines.Clear();
  if (!job.ok() && ErrorReason(job.status()) == "INTERRUPTED") {
    *context.env.err << "detached; the job goes on. Come back: longhaul watch " << found.id() << "\n";
    return kInterrupted;
  }
  LH_RETURN_IF_ERROR(job.status());
  PrintOutcome(*job, *context.env.err);
  return ExitCodeForState(job->state());
}

absl::StatusOr<ExitCode> WaitFor(Context& context, const std::string& text, const std::string& timeout) {
  WatchOptions watch;
  if (!timeout.empty()) {
    LH_ASSIGN_OR_RETURN(watch.timeout_ms, ParseDurationMs("--timeout", timeout));
  }
  LH_ASSIGN_OR_RETURN(const v1::Job found, context.client().FindJob(text));
  watch.id = found.id();
  watch.known_reachable = true;
  WatchSink quiet;
  LH_ASSIGN_OR_RETURN(const v1::Job job, WatchToEnd(context.client(), watch, quiet));
  if (context.structured()) {
    PrintMessage(job, context.output, *context.env.out);
  } else {
    *context.env.out << job.id() << " " << v1::JobState_Name(job.state()) << "\n";
  }
  if (job.state() == v1::FAILED) PrintOutcome(job, *context.env.err);
  return ExitCodeForState(job.state());
}

// One attempt's log to env.out, from request->offset; advances offset and fills in the attempt, so that it can go on.
absl::Status StreamLog(Context& context, v1::ReadLogsRequest* request) {
  Client& client = context.client();
  grpc::ClientContext call;
  StopSignal::Scope scope(*context.env.stop, [&call] { call.TryCancel(); });
  const auto reader = client.jobs().ReadLogs(&call, *request);
  v1::ReadLogsResponse response;
  while (reader->Read(&response)) {
    request->set_attempt(response.attempt());
    const int64_t skip = request->offset() - response.offset();
    if (skip < static_cast<int64_t>(response.data().size())) {
      *context.env.out << response.data().substr(skip > 0 ? static_cast<size_t>(skip) : 0) << std::flush;
      request->set_offset(response.offset() + static_cast<int64_t>(response.data().size()));
    }
  }
  return client.Error(reader->Finish());
}

absl::Status StreamLogOverRestarts(Context& context, v1::ReadLogsRequest* request) {
  for (int tries = 1;; ++tries) {
    const int64_t before = request->offset();
    const absl::Status status = StreamLog(context, request);
    // CANCELLED, and not by us: whoever reads our output stood still for longer than the scheduler waits.
    const bool stalled = absl::IsCancelled(status) && !context.env.stop->stopped();
    const bool further = request->offset() != before;
    if (!(IsConnectionError(status) || stalled) || !(request->follow() || further) || tries == kLogTries) return status;
    if (further) tries = 1;
    if (context.env.stop->WaitForMillis(kLogRetryMs)) return context.client().Error(grpc::Status::CANCELLED);
  }
}

absl::StatusOr<ExitCode> Logs(Context& context, const std::string& text, int attempt, bool follow) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job found, client.FindJob(text));
  v1::ReadLogsRequest request;
  request.set_id(found.id());
  request.set_attempt(attempt);
  request.set_follow(follow);
  while (true) {
    LH_RETURN_IF_ERROR(StreamLogOverRestarts(context, &request));
    if (!follow || attempt != 0) return kOk;
    v1::GetFineTuneJobRequest get;
    get.set_id(found.id());
    LH_ASSIGN_OR_RETURN(const v1::Job job, client.Call(client.jobs(), &v1::FineTuneService::Stub::GetFineTuneJob, get));
    if (job.attempt().number() <= request.attempt()) {
      if (!IsTerminal(job.state())) {
        *context.env.err << "attempt " << request.attempt() << " has ended; the job is "
                         << v1::JobState_Name(job.state()) << "\n";
      }
      return kOk;
    }
    request.set_attempt(request.attempt() + 1);
    request.set_offset(0);
  }
}

}  // namespace

void AddStreamCommands(CLI::App& app, Context& context) {
  CLI::App* watch =
      app.add_subcommand("watch", "Events and progress of a job until it ends; survives the scheduler's restart");
  const auto watch_id = std::make_shared<std::string>();
  const auto after = std::make_shared<int64_t>(0);
  watch->add_option("job", *watch_id, "id, or its beginning")->required();
  CLI::Option* cursor = watch->add_option("--after-sequence", *after, "first the events after this one; 0 = all");
  watch->callback([&context, watch_id, after, cursor] {
    context.action = [&context, watch_id, after, cursor] {
      return Watch(context, *watch_id, *after, cursor->count() > 0);
    };
  });

  CLI::App* wait = app.add_subcommand("wait", "Return when a job has ended, with the exit code of its state");
  const auto wait_id = std::make_shared<std::string>();
  const auto timeout = std::make_shared<std::string>();
  wait->add_option("job", *wait_id, "id, or its beginning")->required();
  wait->add_option("--timeout", *timeout, "give up after this long: 90, 30m, 2h; exits 6");
  wait->callback([&context, wait_id, timeout] {
    context.action = [&context, wait_id, timeout] { return WaitFor(context, *wait_id, *timeout); };
  });

  CLI::App* logs = app.add_subcommand("logs", "What a job's trainer printed");
  const auto logs_id = std::make_shared<std::string>();
  const auto attempt = std::make_shared<int>(0);
  const auto follow = std::make_shared<bool>(false);
  logs->add_option("job", *logs_id, "id, or its beginning")->required();
  logs->add_option("--attempt", *attempt, "default: the last one")->check(CLI::NonNegativeNumber);
  logs->add_flag("-f,--follow", *follow, "stay until the log is complete");
  logs->callback([&context, logs_id, attempt, follow] {
    context.action = [&context, logs_id, attempt, follow] { return Logs(context, *logs_id, *attempt, *follow); };
  });
}

}  // namespace longhaul::cli
