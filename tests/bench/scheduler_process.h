// The longhauld of this build as a process of its own, for benchmarks of what it costs alone. Linux.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/env.h"

namespace longhaul::server {

struct SchedulerProcess {
  pid_t pid = 0;
  int port = 0;
  int http_port = 0;
};

// Returns when it serves.
inline SchedulerProcess StartSchedulerProcess(const std::string& folder, const std::vector<std::string>& flags) {
  const std::string port_file = JoinPath(folder, "ports.json");
  LH_CHECK(RemoveFile(port_file).ok());
  const std::string binary = JoinPath(ExecutableDir(), "longhauld");
  std::vector<std::string> words = {binary,        "--state-dir",   folder,        "--listen",
                                    "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--port-file",
                                    port_file,     "--log-level",   "error"};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  SchedulerProcess running;
  running.pid = ::fork();
  LH_CHECK(running.pid >= 0);
  if (running.pid == 0) {
    ::execv(binary.c_str(), arguments.data());
    std::perror("longhauld");
    ::_exit(1);
  }
  while (!FileExists(port_file)) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const std::string ports = *ReadFile(port_file, 1'000);
  LH_CHECK(std::sscanf(ports.c_str(), "{\"grpc_port\":%d,\"http_port\":%d}", &running.port, &running.http_port) == 2);
  return running;
}

// "VmRSS:    12345 kB" of /proc/<pid>/status, in MiB.
inline double StatusMib(pid_t pid, const std::string& field) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with(field + ":")) return std::stod(line.substr(field.size() + 1)) / 1024;
  }
  return 0;
}

// User and system time of all its threads so far.
inline double CpuSeconds(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(stat, line);
  // After the name, which may hold anything: state, then fields 4 to 13, then utime and stime.
  long long user = 0;
  long long system = 0;
  const std::string rest = line.substr(line.rfind(')') + 2);
  LH_CHECK(std::sscanf(rest.c_str(), "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lld %lld", &user, &system) == 2);
  return static_cast<double>(user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

}  // namespace longhaul::server
