#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <sstream>

#include "base/env.h"
#include "base/program/error_text.h"
#include "clients/cli/cli.h"

namespace {

using longhaul::cli::CliEnv;
using longhaul::cli::SignalThread;

void Exec(const std::string& path, const std::vector<std::string>& argv) {
  SignalThread::RestoreMask();
  std::vector<char*> pointers;
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  execv(path.c_str(), pointers.data());
}

std::vector<std::string> ToolDirs() {
  std::vector<std::string> dirs = {longhaul::ExecutableDir()};
  const char* path = std::getenv("PATH");
  std::istringstream parts(path == nullptr ? "" : path);
  for (std::string dir; std::getline(parts, dir, ':');) {
    if (!dir.empty()) dirs.push_back(dir);
  }
  return dirs;
}

bool HasValue(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && value[0] != '\0';
}

}  // namespace

int main(int argc, char** argv) {
  longhaul::channel::SilenceGrpcLog();
  longhaul::RealClock clock;
  longhaul::cli::StopSignal stop;
  SignalThread signals(stop);
  const bool dumb = HasValue("TERM") && std::string(std::getenv("TERM")) == "dumb";
  CliEnv env;
  env.out = &std::cout;
  env.err = &std::cerr;
  env.out_is_terminal = isatty(STDOUT_FILENO) == 1 && !dumb;
  env.err_is_terminal = isatty(STDERR_FILENO) == 1 && !dumb;
  env.color = env.out_is_terminal && !HasValue("NO_COLOR");
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) env.columns = size.ws_col;
  if (HasValue("LONGHAUL_SERVER")) env.default_channel.address = std::getenv("LONGHAUL_SERVER");
  longhaul::channel::ReadEnvironment([](const char* name) -> const char* { return std::getenv(name); },
                                     &env.default_channel);
  env.clock = &clock;
  env.stop = &stop;
  env.exec = Exec;
  env.tool_dirs = ToolDirs();
  const int code = longhaul::cli::RunCli(std::vector<std::string>(argv + 1, argv + argc), env);
  return longhaul::program::FlushOutput("longhaul") ? code : longhaul::program::kInternal;
}
