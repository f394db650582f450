// data preview, chat: work of the engine, done by longhaul-tool, which needs no server. Also version.
#include <cerrno>
#include <cstring>
#include <memory>
#include <ostream>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "clients/cli/commands.h"

namespace longhaul::cli {
namespace {

constexpr char kToolName[] = "longhaul-tool";

absl::StatusOr<ExitCode> ExecTool(Context& context, const std::vector<std::string>& tool_command,
                                  std::vector<std::string> arguments) {
  if (context.output != OutputFormat::kJson && context.output != OutputFormat::kTable) {
    return InvalidField("--output", "is a form of lists and jobs; this command prints text, or json");
  }
  // Ours to say, the tool's to do: -o was taken by our own parse.
  if (context.output == OutputFormat::kJson) arguments.insert(arguments.end(), {"-o", "json"});
  for (const std::string& dir : context.env.tool_dirs) {
    const std::string path = JoinPath(dir, kToolName);
    if (!FileExists(path) || IsDirectory(path)) continue;
    // By its first word it calls itself what was typed, in help and errors.
    std::vector<std::string> argv = {"longhaul"};
    argv.insert(argv.end(), tool_command.begin(), tool_command.end());
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    context.env.out->flush();
    context.env.exec(path, argv);
    return MakeError(absl::StatusCode::kFailedPrecondition, "LOCAL_FILE",
                     path + " cannot be run: " + std::strerror(errno));
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "TOOL_MISSING",
                   std::string(kToolName) + " is neither beside longhaul nor in PATH");
}

void AddToolCommand(CLI::App& parent, Context& context, const std::string& name,
                    const std::vector<std::string>& tool_command, const std::string& help) {
  CLI::App* command = parent.add_subcommand(name, help);
  // The tool has its own flags and its own --help.
  command->prefix_command();
  command->set_help_flag();
  command->fallthrough(false);
  command->callback([&context, command, tool_command] {
    context.action = [&context, tool_command, arguments = command->remaining()] {
      return ExecTool(context, tool_command, arguments);
    };
  });
}

}  // namespace

void AddToolCommands(CLI::App& app, Context& context) {
  CLI::App* data = app.add_subcommand("data", "Look at a dataset before it is trained on");
  data->require_subcommand(1);
  AddToolCommand(*data, context, "preview", {"data", "preview"},
                 "Examples as the trainer sees them: tokens, mask, cuts (longhaul-tool data preview)");
  AddToolCommand(app, context, "chat", {"chat"},
                 "An answer from a model, with or without an adapter (longhaul-tool chat)");
}

void AddVersionCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("version", "This client's version");
  command->callback([&context] {
    context.action = [&context]() -> absl::StatusOr<ExitCode> {
      if (context.output == OutputFormat::kJson) {
        *context.env.out << "{\"version\": \"" << LONGHAUL_VERSION << "\", \"api\": \"longhaul.v1\"}\n";
      } else {
        *context.env.out << "longhaul " << LONGHAUL_VERSION << " (API longhaul.v1)\n";
      }
      return kOk;
    };
  });
}

}  // namespace longhaul::cli
