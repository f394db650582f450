// The commands of `longhaul`. Each Add… registers its subcommands; a parse then leaves the chosen one in
// Context::action.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/program/exit_codes.h"
#include "clients/cli/client.h"
#include "clients/cli/render.h"
#include "clients/cli/terminal.h"

namespace longhaul::cli {

// One run of the CLI. `env` outlives it.
struct Context {
  explicit Context(const CliEnv& e) : env(e) {}
  const CliEnv& env;
  channel::ChannelOptions channel;
  OutputFormat output = OutputFormat::kTable;
  std::function<absl::StatusOr<ExitCode>()> action;
  std::unique_ptr<Client> client_;  // set before `action` runs

  Client& client() { return *client_; }
  bool structured() const { return output == OutputFormat::kJson || output == OutputFormat::kYaml; }
};

// "90", "90s", "1.5h" as milliseconds; INVALID_ARGUMENT names `flag`.
absl::StatusOr<int64_t> ParseDurationMs(const std::string& flag, const std::string& text);

// A command that takes a job's id alone: `name` JOB calls `run`.
void AddIdCommand(CLI::App& app, Context& context, const std::string& name, const std::string& help,
                  absl::StatusOr<ExitCode> (*run)(Context&, const std::string&));

void AddSubmitCommand(CLI::App& app, Context& context);
void AddEstimateCommand(CLI::App& app, Context& context);
void AddExplainCommand(CLI::App& app, Context& context);
void AddJobCommands(CLI::App& app, Context& context);      // list get cancel pause resume delete
void AddHistoryCommands(CLI::App& app, Context& context);  // attempts checkpoints metrics
void AddStreamCommands(CLI::App& app, Context& context);   // watch wait logs
void AddDownloadCommand(CLI::App& app, Context& context);
void AddWorkerCommands(CLI::App& app, Context& context);  // workers drain undrain
void AddToolCommands(CLI::App& app, Context& context);    // data preview, chat
void AddVersionCommand(CLI::App& app, Context& context);

}  // namespace longhaul::cli
