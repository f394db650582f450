// attempts, checkpoints, metrics: what a job has done so far.
#include <cstdio>
#include <memory>
#include <ostream>

#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "wire/enum_names.h"

namespace longhaul::cli {
namespace {

using Stub = v1::FineTuneService::Stub;

void Print(Context& context, const google::protobuf::Message& message, const Table& table) {
  if (context.structured()) {
    PrintMessage(message, context.output, *context.env.out);
  } else {
    table.Print(*context.env.out);
  }
}

std::string OrDash(const std::string& text) { return text.empty() ? "-" : text; }

absl::StatusOr<ExitCode> Attempts(Context& context, const std::string& text) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job job, client.FindJob(text));
  v1::ListAttemptsRequest request;
  request.set_id(job.id());
  LH_ASSIGN_OR_RETURN(const v1::ListAttemptsResponse response,
                      client.CallAllPages(client.jobs(), &Stub::ListAttempts, request));
  Table table({"ATTEMPT", "KIND", "OUTCOME", "REASON", "WORKER", "DEVICE", "EPOCH", "FROM STEP", "STARTED", "ENDED",
               "RAM PLANNED", "RAM PEAK", "MESSAGE"});
  for (const v1::Attempt& attempt : response.attempts()) {
    table.Add({std::to_string(attempt.number()), OrDash(wire::EnumName(attempt.kind())),
               attempt.has_end_time() ? OrDash(wire::EnumName(attempt.outcome())) : "running",
               OrDash(wire::EnumName(attempt.reason())), attempt.worker_id(), attempt.device_id(),
               std::to_string(attempt.lease_epoch()), std::to_string(attempt.resumed_from_step()),
               FormatTimestamp(ToMicros(attempt.start_time())),
               attempt.has_end_time() ? FormatTimestamp(ToMicros(attempt.end_time())) : "-",
               FormatBytes(attempt.host_bytes_planned()), FormatBytes(attempt.host_bytes_peak()),
               OrDash(attempt.message())});
  }
  Print(context, response, table);
  return kOk;
}

absl::StatusOr<ExitCode> Checkpoints(Context& context, const std::string& text) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job job, client.FindJob(text));
  v1::ListCheckpointsRequest request;
  request.set_id(job.id());
  LH_ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse response,
                      client.CallAllPages(client.jobs(), &Stub::ListCheckpoints, request));
  Table table({"STEP", "ATTEMPT", "COMMITTED", "FILES", "SIZE", "HELD-OUT LOSS", "FINAL", "MADE WITH"});
  for (const v1::Checkpoint& checkpoint : response.checkpoints()) {
    int64_t bytes = 0;
    for (const v1::BlobFile& file : checkpoint.files()) bytes += file.size_bytes();
    table.Add({std::to_string(checkpoint.step()), std::to_string(checkpoint.attempt()),
               FormatTimestamp(ToMicros(checkpoint.commit_time())), std::to_string(checkpoint.files_size()),
               FormatBytes(bytes), checkpoint.has_eval_loss() ? Loss(checkpoint.eval_loss()) : "-",
               checkpoint.final() ? "yes" : "no", OrDash(checkpoint.made_with())});
  }
  Print(context, response, table);
  return kOk;
}

std::string Scientific(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3e", value);
  return text;
}

absl::StatusOr<ExitCode> Metrics(Context& context, const std::string& text, int64_t after_step) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job job, client.FindJob(text));
  v1::ListMetricsRequest request;
  request.set_id(job.id());
  request.set_after_step(after_step);
  request.set_page_size(limits::kMaxPageSize);
  v1::ListMetricsResponse all;
  while (true) {
    LH_ASSIGN_OR_RETURN(const v1::ListMetricsResponse page, client.Call(client.jobs(), &Stub::ListMetrics, request));
    all.mutable_points()->MergeFrom(page.points());
    if (!page.has_more() || page.points().empty()) break;
    request.set_after_step(page.points().rbegin()->step());
  }
  Table table({"STEP", "ATTEMPT", "EPOCH", "LOSS", "LR", "GRAD NORM", "TOK/S", "HELD-OUT LOSS"});
  for (const v1::TrainingProgress& point : all.points()) {
    char epoch[32];
    std::snprintf(epoch, sizeof(epoch), "%.3f", point.epoch());
    table.Add({std::to_string(point.step()), std::to_string(point.attempt()), epoch, Loss(point.loss()),
               Scientific(point.learning_rate()), Scientific(point.grad_norm()),
               FormatCount(static_cast<int64_t>(point.tokens_per_second() + 0.5)),
               point.has_eval_loss() ? DescribeEvaluation(point) : "-"});
  }
  Print(context, all, table);
  return kOk;
}

}  // namespace

void AddHistoryCommands(CLI::App& app, Context& context) {
  AddIdCommand(app, context, "attempts", "A job's attempts: where, when, how each ended", Attempts);
  AddIdCommand(app, context, "checkpoints", "A job's durable checkpoints", Checkpoints);
  CLI::App* metrics = app.add_subcommand("metrics", "A job's training metrics by step");
  const auto id = std::make_shared<std::string>();
  const auto after_step = std::make_shared<int64_t>(0);
  metrics->add_option("job", *id, "id, or its beginning")->required();
  metrics->add_option("--after-step", *after_step, "only later steps");
  metrics->callback([&context, id, after_step] {
    context.action = [&context, id, after_step] { return Metrics(context, *id, *after_step); };
  });
}

}  // namespace longhaul::cli
