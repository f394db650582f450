// A command line that cannot be parsed is told as every other error is: what is wrong, and what to do.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace longhaul::program {

// Parses `arguments` (without the program's name, which is app.get_name()). Nothing: go on. Else the exit code: kOk
// after --help or --version, whose text went to `out`; kInvalid after an error, told on `err` with the nearest known
// word where one was mistyped. What an option's own check throws is told, too.
std::optional<int> ParseCommandLine(CLI::App& app, const std::vector<std::string>& arguments, std::ostream& out,
                                    std::ostream& err);

// The same of main's arguments.
std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv);

}  // namespace longhaul::program
