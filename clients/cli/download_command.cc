#include <memory>
#include <ostream>

#include "base/env.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "clients/cli/blob_transfer.h"
#include "clients/cli/commands.h"

namespace longhaul::cli {
namespace {

absl::StatusOr<ExitCode> Download(Context& context, const std::string& text, const std::string& asked_dir) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::Job found, client.FindJob(text));
  v1::GetFineTuneJobRequest request;
  request.set_id(found.id());
  LH_ASSIGN_OR_RETURN(const v1::Job job,
                      client.Call(client.jobs(), &v1::FineTuneService::Stub::GetFineTuneJob, request));
  if (job.state() != v1::SUCCEEDED || job.artifact().files().empty()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_ARTIFACT",
                     job.id() + " is " + v1::JobState_Name(job.state()) +
                         "; only a job that SUCCEEDED has an adapter (`longhaul wait " + job.id() + "`)");
  }
  const std::string dir = asked_dir.empty() ? job.id() : asked_dir;
  if (absl::Status status = CreateDirs(dir); !status.ok()) {
    return MakeError(status.code(), "LOCAL_FILE", std::string(status.message()));
  }
  for (const v1::BlobFile& file : job.artifact().files()) {
    LH_RETURN_IF_ERROR(DownloadFile(client, file, dir));
    *context.env.err << "  " << JoinPath(dir, file.path()) << "  sha256 " << file.sha256() << "\n";
  }
  if (context.structured()) {
    PrintMessage(job.artifact(), context.output, *context.env.out);
  } else {
    *context.env.out << dir << "\n";
  }
  return kOk;
}

}  // namespace

void AddDownloadCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("download", "A job's adapter into a folder, every file verified");
  const auto id = std::make_shared<std::string>();
  const auto dir = std::make_shared<std::string>();
  command->add_option("job", *id, "id, or its beginning")->required();
  command->add_option("-d,--dir", *dir, "default: a folder named by the job's id")->type_name("DIR");
  command->callback(
      [&context, id, dir] { context.action = [&context, id, dir] { return Download(context, *id, *dir); }; });
}

}  // namespace longhaul::cli
