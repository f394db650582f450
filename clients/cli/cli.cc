#include "clients/cli/cli.h"

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string_view>

#include "base/program/command_line.h"
#include "clients/channel/channel_flags.h"
#include "clients/cli/commands.h"

namespace longhaul::cli {
namespace {

// CLI11 shows the value that a --no- flag gives: "--packing,--no-packing{false}".
class HelpFormatter final : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    std::string name = CLI::Formatter::make_option_name(option, is_positional);
    constexpr std::string_view kValue = "{false}";
    for (size_t at = name.find(kValue); at != std::string::npos; at = name.find(kValue)) name.erase(at, kValue.size());
    return name;
  }
};

void AddGlobalOptions(CLI::App& app, Context& context) {
  context.channel = context.env.default_channel;
  app.add_option("--server", context.channel.address, "the scheduler (also LONGHAUL_SERVER)")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  channel::AddChannelFlags(app, &context.channel);
  const auto set_output = [&context](const std::string& text) {
    static const std::map<std::string, OutputFormat> kFormats = {{"table", OutputFormat::kTable},
                                                                 {"wide", OutputFormat::kWide},
                                                                 {"json", OutputFormat::kJson},
                                                                 {"yaml", OutputFormat::kYaml},
                                                                 {"name", OutputFormat::kName}};
    const auto found = kFormats.find(text);
    if (found == kFormats.end()) {
      throw CLI::ValidationError("--output", "is '" + text + "'; must be table, wide, json, yaml or name");
    }
    context.output = found->second;
  };
  app.add_option_function<std::string>("-o,--output", set_output, "table, wide, json, yaml or name")
      ->type_name("FORMAT");
}

}  // namespace

int RunCli(const std::vector<std::string>& arguments, const CliEnv& env) {
  Context context(env);
  CLI::App app("Longhaul fine-tunes language models: submit a job, follow it, download its adapter.", "longhaul");
  app.formatter(std::make_shared<HelpFormatter>());  // inherited
  app.footer(std::string("\n") + program::kExitCodeHelp +
             "\nData goes to stdout, progress and errors to stderr. Ids may be shortened while they are unique.\n"
             "-o, --server and what `longhaul --help` has under Security go with every command.");
  app.set_version_flag("--version", std::string("longhaul ") + LONGHAUL_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // inherited: global options may follow the command
  AddGlobalOptions(app, context);
  AddSubmitCommand(app, context);
  AddEstimateCommand(app, context);
  AddJobCommands(app, context);
  AddExplainCommand(app, context);
  AddStreamCommands(app, context);
  AddHistoryCommands(app, context);
  AddDownloadCommand(app, context);
  AddWorkerCommands(app, context);
  AddToolCommands(app, context);
  AddVersionCommand(app, context);
  // Last, so that only `longhaul --help-all` has it, not every command.
  app.set_help_all_flag("--help-all", "Help of every command");
  if (const std::optional<int> code = program::ParseCommandLine(app, arguments, *env.out, *env.err)) return *code;
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = OpenCliChannel(context.channel);
  if (!channel.ok()) {
    *env.err << DescribeError(channel.status()) << std::flush;
    return ExitCodeFor(channel.status());
  }
  context.client_ = std::make_unique<Client>(context.channel.address, *std::move(channel), env);
  const absl::StatusOr<ExitCode> result = context.action();
  if (result.ok()) return *result;
  *env.err << DescribeError(result.status()) << std::flush;
  return ExitCodeFor(result.status());
}

}  // namespace longhaul::cli
