// explain: why a job is where it is, and until when.
#include <memory>
#include <ostream>

#include "base/status_macros.h"
#include "clients/cli/commands.h"

namespace longhaul::cli {
namespace {

absl::StatusOr<ExitCode> Explain(Context& context, const std::string& text) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job found, client.FindJob(text));
  v1::ExplainFineTuneJobRequest request;
  request.set_id(found.id());
  LH_ASSIGN_OR_RETURN(const v1::ExplainFineTuneJobResponse response,
                      client.Call(client.jobs(), &v1::FineTuneService::Stub::ExplainFineTuneJob, request));
  if (context.structured()) {
    PrintMessage(response, context.output, *context.env.out);
  } else if (context.output == OutputFormat::kName) {
    *context.env.out << response.job().id() << "\n";
  } else {
    PrintExplanation(response, context.env, *context.env.out);
  }
  return kOk;
}

}  // namespace

void AddExplainCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "explain", "Why a job is where it is, what would let it go on, its place in the queue and its expected start");
  const auto id = std::make_shared<std::string>();
  command->add_option("job", *id, "id, or its beginning")->required();
  command->callback([&context, id] { context.action = [&context, id] { return Explain(context, *id); }; });
}

}  // namespace longhaul::cli
