#include <memory>
#include <ostream>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "clients/cli/blob_transfer.h"
#include "clients/cli/commands.h"
#include "clients/cli/job_flags.h"
#include "model/model_shape.h"
#include "wire/job_file.h"
#include "wire/job_spec.h"
#include "wire/model_values.h"

namespace longhaul::cli {
namespace {

struct EstimateOptions {
  std::string file;
  std::string shape_file;
  JobFlags flags;
};

absl::StatusOr<v1::EstimateFineTuneJobRequest> BuildRequest(const EstimateOptions& options) {
  YAML::Node root(YAML::NodeType::Map);
  if (!options.file.empty()) {
    absl::StatusOr<YAML::Node> read = wire::ReadJobFile(options.file);
    if (!read.ok()) return LocalFileError(read.status());
    root = *std::move(read);
  }
  LH_RETURN_IF_ERROR(options.flags.Apply(root));
  LH_ASSIGN_OR_RETURN(const v1::CreateFineTuneJobRequest job,
                      wire::JobRequestFromYaml(root, options.file.empty() ? "command line" : options.file));
  v1::EstimateFineTuneJobRequest request;
  *request.mutable_spec() = job.spec();
  request.set_project(job.project());
  // An estimate reads no data, but a file that is there tells the disk it takes.
  v1::JobSpec* spec = request.mutable_spec();
  for (const auto& [field, dataset] : {std::pair("spec.dataset", spec->mutable_dataset()),
                                       std::pair("spec.eval_dataset", spec->mutable_eval_dataset())}) {
    if (!dataset->sha256().empty() || dataset->file_name().empty()) continue;
    LH_RETURN_IF_ERROR(DescribeDataset(field, std::string(dataset->file_name()), dataset));
  }
  if (!job.spec().has_dataset()) request.mutable_spec()->clear_dataset();
  if (!job.spec().has_eval_dataset()) request.mutable_spec()->clear_eval_dataset();
  wire::JobSpecRules rules;
  rules.require_dataset = false;
  rules.require_model = options.shape_file.empty();
  LH_RETURN_IF_ERROR(wire::ValidateJobSpec(request.spec(), nullptr, rules));
  if (options.shape_file.empty()) return request;
  const auto config = ReadFile(options.shape_file, limits::kMaxJobFileBytes);
  if (!config.ok()) return LocalFileError(config.status());
  const auto shape = ModelShapeFromConfigJson(*config);
  if (!shape.ok()) return Annotate(shape.status(), options.shape_file);
  *request.mutable_model_shape() = wire::ToProto(*shape);
  return request;
}

absl::StatusOr<ExitCode> RunEstimate(Context& context, const EstimateOptions& options) {
  LH_ASSIGN_OR_RETURN(const v1::EstimateFineTuneJobRequest request, BuildRequest(options));
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::EstimateFineTuneJobResponse response,
                      client.Call(client.jobs(), &v1::FineTuneService::Stub::EstimateFineTuneJob, request));
  if (context.structured()) {
    PrintMessage(response, context.output, *context.env.out);
  } else {
    PrintEstimate(response, context.env, *context.env.out);
  }
  if (response.classes().empty()) {
    *context.env.err << "longhaul: cannot tell: no worker has registered a device yet\n"
                     << "  what to do: start one (longhaul-worker --scheduler " << client.address()
                     << " --state-dir DIR --models DIR)\n";
    return kInvalid;
  }
  if (response.fits_somewhere()) return kOk;
  *context.env.err
      << "longhaul: it fits on no device that is registered\n"
      << "  what to do: shorten the sequences to what LONGEST SEQUENCE says, lower --batch-size or --rank, "
         "or add a larger worker\n";
  return kJobFailed;
}

}  // namespace

void AddEstimateCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "estimate", "Memory, disk and time of a job, and where it fits; exits 0 fits, 1 does not, 2 cannot tell");
  const auto options = std::make_shared<EstimateOptions>();
  command->add_option("-f,--file", options->file, "job file, YAML or JSON; flags override it")->type_name("FILE");
  command->add_option("--shape", options->shape_file, "a model's config.json instead of --model")->type_name("FILE");
  options->flags.Register(*command);
  command->callback([&context, options] {
    context.action = [&context, options]() -> absl::StatusOr<ExitCode> {
      absl::StatusOr<ExitCode> code = RunEstimate(context, *options);
      if (!code.ok()) return options->flags.NameFlags(code.status());
      return code;
    };
  });
}

}  // namespace longhaul::cli
