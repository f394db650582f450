#include "base/program/command_line.h"

#include <cmath>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <regex>
#include <sstream>

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

// "0.000000" as CLI11 prints a bound -> "0"; "" where it stands for no bound at all.
std::string Bound(const std::string& text) {
  const double value = std::strtod(text.c_str(), nullptr);
  if (std::abs(value) >= 1e18) return "";
  std::ostringstream out;
  out << std::setprecision(15) << value;
  return out.str();
}

// CLI11's own words for a bad value, as every other bad value is told: "--rank is 'x'; must be ...".
std::string BadValue(const std::string& words) {
  static const std::regex range(R"(^(\S+): Value (.*) not in range (\S+) to (\S+)$)");
  static const std::regex member(R"(^(\S+): (.*) not in \{(.*)\}$)");
  static const std::regex number(R"(^Could not convert: (\S+) = (.*)$)");
  static const std::regex absent(R"(^(\S+): 1 required \S+ missing$)");
  std::smatch parts;
  if (std::regex_match(words, parts, range)) {
    const std::string is = parts.str(1) + " is '" + parts.str(2) + "'; must be ";
    const std::string from = Bound(parts.str(3));
    const std::string to = Bound(parts.str(4));
    if (!to.empty()) return is + from + " to " + to;
    // PositiveNumber's range begins at the least double above 0, which prints as 0.
    return is + (from == "0" ? "a number above 0" : from + " or more");
  }
  if (std::regex_match(words, parts, member)) {
    const std::string known = std::regex_replace(parts.str(3), std::regex(","), ", ");
    return parts.str(1) + " is '" + parts.str(2) + "'; must be one of " + known;
  }
  if (std::regex_match(words, parts, number)) return parts.str(1) + " is '" + parts.str(2) + "'; must be a number";
  if (std::regex_match(words, parts, absent)) return parts.str(1) + " needs a value";
  return words;
}

absl::Status Explain(const CLI::App& app, const CLI::ParseError& error) {
  const Reached at = DeepestCommand(app);
  const std::vector<std::string> commands = CommandNames(*at.app);
  const std::string see = "`" + at.name + " --help` lists its " + (commands.empty() ? "flags" : "commands and flags");
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  // A mistyped flag comes first: that another is missing may only follow from it.
  const bool usage = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
                     dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  if (!usage) return UsageError(BadValue(error.what()), see);
  for (const std::string& word : unknown) {
    if (word.size() < 2 || word[0] != '-') continue;
    const std::string flag = word.substr(0, word.find('='));
    return UsageError("`" + at.name + "` has no flag " + flag, DidYouMean(flag, FlagNames(at.app)) + see);
  }
  if (!unknown.empty() && !commands.empty()) {
    return UsageError("`" + at.name + "` has no command '" + unknown[0] + "'", DidYouMean(unknown[0], commands) + see);
  }
  if (!unknown.empty()) return UsageError("`" + at.name + "` takes no further argument '" + unknown[0] + "'", see);
  const std::string words = error.what();
  if (words.rfind("A subcommand", 0) == 0) return UsageError("`" + at.name + "` needs a command", see);
  return UsageError("`" + at.name + "`: " + words, see);
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
