// The whole CLI as a function, so that tests run it in process.
#pragma once

#include <string>
#include <vector>

#include "clients/cli/terminal.h"

namespace longhaul::cli {

// `arguments` without the program's name. Returns an ExitCode (base/program/exit_codes.h).
int RunCli(const std::vector<std::string>& arguments, const CliEnv& env);

}  // namespace longhaul::cli
