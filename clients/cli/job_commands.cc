// list, get, cancel, pause, resume, delete.
#include <memory>
#include <ostream>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/job_flags.h"
#include "longhaul/v1/job.pb.h"
#include "wire/enum_names.h"

namespace longhaul::cli {
namespace {

struct ListOptions {
  std::vector<std::string> states;
  std::vector<std::string> labels;
  std::string model;
  std::string project;
  bool all_projects = false;
  int limit = limits::kDefaultPageSize;
  bool oldest_first = false;
};

absl::StatusOr<v1::ListFineTuneJobsRequest> ListRequest(const ListOptions& options) {
  v1::ListFineTuneJobsRequest request;
  request.set_project(options.all_projects ? "-" : options.project);
  request.set_model(options.model);
  request.set_oldest_first(options.oldest_first);
  for (const std::string& text : options.states) {
    LH_ASSIGN_OR_RETURN(const int state, wire::ParseEnumName(*v1::JobState_descriptor(), text, "--state"));
    request.add_states(static_cast<v1::JobState>(state));
  }
  LH_ASSIGN_OR_RETURN(const auto labels, ParsePairs("--label", options.labels));
  request.mutable_labels()->insert(labels.begin(), labels.end());
  return request;
}

absl::StatusOr<ExitCode> List(Context& context, const ListOptions& options) {
  LH_ASSIGN_OR_RETURN(v1::ListFineTuneJobsRequest request, ListRequest(options));
  Client& client = context.client();
  v1::ListFineTuneJobsResponse all;
  do {
    request.set_page_size(std::min(options.limit - all.jobs_size(), limits::kMaxPageSize));
    request.set_page_token(all.next_page_token());
    LH_ASSIGN_OR_RETURN(const v1::ListFineTuneJobsResponse page,
                        client.Call(client.jobs(), &v1::FineTuneService::Stub::ListFineTuneJobs, request));
    all.mutable_jobs()->MergeFrom(page.jobs());
    all.set_next_page_token(page.next_page_token());
  } while (!all.next_page_token().empty() && all.jobs_size() < options.limit);
  if (context.structured()) {
    PrintMessage(all, context.output, *context.env.out);
  } else if (context.output == OutputFormat::kName) {
    for (const v1::Job& job : all.jobs()) *context.env.out << job.id() << "\n";
  } else {
    if (all.jobs().empty()) *context.env.err << "no jobs\n";
    PrintJobTable({all.jobs().begin(), all.jobs().end()}, context.output == OutputFormat::kWide, options.all_projects,
                  context.env, *context.env.out);
  }
  if (!all.next_page_token().empty()) *context.env.err << "there are more; --limit shows up to that many\n";
  return kOk;
}

void PrintOne(Context& context, const v1::Job& job) {
  if (context.structured()) {
    PrintMessage(job, context.output, *context.env.out);
  } else if (context.output == OutputFormat::kName) {
    *context.env.out << job.id() << "\n";
  } else {
    PrintJob(job, context.env, *context.env.out);
  }
}

absl::StatusOr<ExitCode> Get(Context& context, const std::string& text) {
  LH_ASSIGN_OR_RETURN(const v1::Job found, context.client().FindJob(text));
  v1::GetFineTuneJobRequest request;
  request.set_id(found.id());
  LH_ASSIGN_OR_RETURN(const v1::Job job, context.client().Call(context.client().jobs(),
                                                               &v1::FineTuneService::Stub::GetFineTuneJob, request));
  PrintOne(context, job);
  return kOk;
}

// Cancel, Pause and Resume differ in the method and the word.
template <class Request>
void AddIntentCommand(CLI::App& app, Context& context, const std::string& name, const std::string& help,
                      grpc::Status (v1::FineTuneService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                        v1::Job*)) {
  CLI::App* command = app.add_subcommand(name, help);
  const auto id = std::make_shared<std::string>();
  command->add_option("job", *id, "id, or its beginning")->required();
  command->callback([&context, id, method] {
    context.action = [&context, id, method]() -> absl::StatusOr<ExitCode> {
      Client& client = context.client();
      LH_ASSIGN_OR_RETURN(const v1::Job found, client.FindJob(*id));
      Request request;
      request.set_id(found.id());
      LH_ASSIGN_OR_RETURN(const v1::Job job, client.Call(client.jobs(), method, request));
      if (context.structured()) {
        PrintMessage(job, context.output, *context.env.out);
      } else {
        *context.env.out << job.id()
                         << (context.output == OutputFormat::kName ? "" : " " + v1::JobState_Name(job.state())) << "\n";
      }
      return kOk;
    };
  });
}

absl::StatusOr<ExitCode> Delete(Context& context, const std::string& text) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job found, client.FindJob(text));
  v1::DeleteFineTuneJobRequest request;
  request.set_id(found.id());
  LH_RETURN_IF_ERROR(client.Call(client.jobs(), &v1::FineTuneService::Stub::DeleteFineTuneJob, request).status());
  *context.env.out << found.id() << "\n";
  return kOk;
}

void AddListCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("list", "Jobs, newest first");
  const auto options = std::make_shared<ListOptions>();
  command->add_option("--state", options->states, "only these states, comma-separated")->delimiter(',');
  command->add_option("--label", options->labels, "only with this label; may be repeated")->type_name("KEY=VALUE");
  command->add_option("--model", options->model, "only of this model");
  CLI::Option* project =
      command->add_option("--project", options->project, "only of this project (default the caller's)");
  command
      ->add_flag("--all-projects", options->all_projects, "of every project, for who may see all; shows whose each is")
      ->excludes(project);
  command->add_option("--limit", options->limit, "at most that many jobs")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_flag("--oldest-first", options->oldest_first, "the oldest first, instead of the newest");
  command->callback([&context, options] { context.action = [&context, options] { return List(context, *options); }; });
}

}  // namespace

void AddIdCommand(CLI::App& app, Context& context, const std::string& name, const std::string& help,
                  absl::StatusOr<ExitCode> (*run)(Context&, const std::string&)) {
  CLI::App* command = app.add_subcommand(name, help);
  const auto id = std::make_shared<std::string>();
  command->add_option("job", *id, "id, or its beginning")->required();
  command->callback([&context, id, run] { context.action = [&context, id, run] { return run(context, *id); }; });
}

void AddJobCommands(CLI::App& app, Context& context) {
  AddListCommand(app, context);
  AddIdCommand(app, context, "get", "One job: state, why, progress, data report, failure, result", Get);
  AddIntentCommand(app, context, "cancel", "Stop a job; nothing is kept but its record",
                   &v1::FineTuneService::Stub::CancelFineTuneJob);
  AddIntentCommand(app, context, "pause", "Checkpoint a job and give its device back",
                   &v1::FineTuneService::Stub::PauseFineTuneJob);
  AddIntentCommand(app, context, "resume", "Queue a paused job again", &v1::FineTuneService::Stub::ResumeFineTuneJob);
  AddIdCommand(app, context, "delete", "Remove a job that has ended", Delete);
}

}  // namespace longhaul::cli
