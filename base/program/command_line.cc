#include "base/program/command_line.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string_view>

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

// Cuts `text` at the first `mark` (at the last, where `from_behind`), and gives what is before it; nothing without one.
std::optional<std::string> Before(std::string* text, std::string_view mark, bool from_behind = false) {
  const size_t at = from_behind ? text->rfind(mark) : text->find(mark);
  if (at == std::string::npos) return std::nullopt;
  std::string before = text->substr(0, at);
  text->erase(0, at + mark.size());
  return before;
}

// "VALUE not in range A to B" of the option `name`; "" where it is not that.
std::string OutOfRange(const std::string& name, std::string rest) {
  std::optional<std::string> value = Before(&rest, " not in range ", /*from_behind=*/true);
  std::optional<std::string> least = Before(&rest, " to ");
  if (!value.has_value() || !least.has_value()) return "";
  const std::string from = Bound(*least);
  const std::string to = Bound(rest);
  const std::string is = name + " is '" + *value + "'; must be ";
  if (!to.empty()) return is + from + " to " + to;
  // PositiveNumber's range begins at the least double above 0, which prints as 0.
  return is + (from == "0" ? "a number above 0" : from + " or more");
}

// CLI11's own words for a bad value, as every other bad value is told: "--rank is 'x'; must be ...".
std::string BadValue(const std::string& words) {
  std::string rest = words;
  constexpr std::string_view kConvert = "Could not convert: ";
  if (rest.starts_with(kConvert)) {
    rest.erase(0, kConvert.size());
    const std::optional<std::string> name = Before(&rest, " = ");
    return name.has_value() ? *name + " is '" + rest + "'; must be a number" : words;
  }
  const std::optional<std::string> name = Before(&rest, ": ");
  if (!name.has_value()) return words;
  if (rest.starts_with("1 required ") && rest.ends_with(" missing")) return *name + " needs a value";
  if (rest.starts_with("Value ")) {
    const std::string told = OutOfRange(*name, rest.substr(6));
    return told.empty() ? words : told;
  }
  const std::optional<std::string> value = Before(&rest, " not in {", /*from_behind=*/true);
  if (!value.has_value() || !rest.ends_with("}")) return words;
  rest.pop_back();
  for (size_t comma = rest.find(','); comma != std::string::npos; comma = rest.find(',', comma + 2)) {
    rest.insert(comma + 1, " ");
  }
  return *name + " is '" + *value + "'; must be one of " + rest;
}

absl::Status Explain(const CLI::App& app, const CLI::ParseError& error) {
  const Reached at = DeepestCommand(app);
  const std::vector<std::string> commands = CommandNames(*at.app);
  const std::string see = "`" + at.name + " --help` lists its " + (commands.empty() ? "flags" : "commands and flags");
  std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  unknown.erase(std::remove(unknown.begin(), unknown.end(), "--"), unknown.end());
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
