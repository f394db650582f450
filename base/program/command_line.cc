#include "base/program/command_line.h"

#include <iostream>

#include "base/error.h"
#include "base/format.h"
#include "base/program/error_text.h"

namespace longhaul::program {
namespace {

// The command that was reached, with its name as it is typed: "longhaul data preview".
struct Reached {
  const CLI::App* app;
  std::string name;
};

Reached DeepestCommand(const CLI::App& app) {
  Reached at{&app, app.get_name()};
  while (!at.app->get_subcommands().empty()) {
    at.app = at.app->get_subcommands().back();
    at.name += " " + at.app->get_name();
  }
  return at;
}

std::string DidYouMean(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = NearestWord(word, known.data(), known.data() + known.size());
  return near.empty() ? "" : "did you mean " + near + "? ";
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

// Of the command and of those above it, whose options it takes too.
std::vector<std::string> FlagNames(const CLI::App* app) {
  std::vector<std::string> names;
  for (; app != nullptr; app = app->get_parent()) {
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  }
  return names;
}

absl::Status UsageError(const std::string& message, const std::string& advice) {
  return WithAdvice(MakeError(absl::StatusCode::kInvalidArgument, "USAGE", message), advice);
}

absl::Status Explain(const CLI::App& app, const CLI::ParseError& error) {
  const Reached at = DeepestCommand(app);
  const std::vector<std::string> commands = CommandNames(*at.app);
  const std::string see = "`" + at.name + " --help` lists its " + (commands.empty() ? "flags" : "commands and flags");
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  // A mistyped flag comes first: that another is missing may only follow from it.
  const bool usage = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
                     dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  if (!usage) return UsageError(error.what(), see);
  for (const std::string& word : unknown) {
    if (word.size() < 2 || word[0] != '-') continue;
    const std::string flag = word.substr(0, word.find('='));
    return UsageError("`" + at.name + "` has no flag " + flag, DidYouMean(flag, FlagNames(at.app)) + see);
  }
  if (!unknown.empty() && !commands.empty()) {
    return UsageError("`" + at.name + "` has no command '" + unknown[0] + "'", DidYouMean(unknown[0], commands) + see);
  }
  if (!unknown.empty()) return UsageError("`" + at.name + "` takes no further argument '" + unknown[0] + "'", see);
  if (!commands.empty()) return UsageError("`" + at.name + "` needs a command", see);
  return UsageError("`" + at.name + "`: " + error.what(), see);
}

}  // namespace

std::optional<int> ParseCommandLine(CLI::App& app, const std::vector<std::string>& arguments, std::ostream& out,
                                    std::ostream& err) {
  try {
    // CLI11 takes a vector from its back.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    return std::nullopt;
  } catch (const CLI::Success& asked) {
    return app.exit(asked, out, err);
  } catch (const CLI::ParseError& error) {
    err << DescribeError(app.get_name(), Explain(app, error), "") << std::flush;
    return kInvalid;
  }
}

std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  return ParseCommandLine(app, std::vector<std::string>(argv + 1, argv + argc), std::cout, std::cerr);
}

}  // namespace longhaul::program
