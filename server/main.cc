// longhauld: the scheduler, and the commands on its state folder. Flags, signals, and one line on stderr where it
// cannot start.
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "base/clock.h"
#include "server/maintenance_commands.h"
#include "server/server.h"
#include "server/version.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace {

// Blocked before any thread starts, so that every thread inherits it and only WaitForSignal takes them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

}  // namespace

int main(int argc, char** argv) {
  longhaul::server::ServerOptions options;
  std::string log_level = "info";
  CLI::App app("The Longhaul scheduler.");
  app.set_version_flag("--version", std::string("longhauld ") + longhaul::server::kVersion);
  app.add_option("--state-dir", options.state_dir, "Folder of the database, blobs and logs; made if absent")
      ->required();
  app.add_option("--listen", options.listen, "gRPC: HOST:PORT on the loopback; port 0 = any")->capture_default_str();
  app.add_option("--http-listen", options.http_listen, "Page and /metrics: HOST:PORT; empty = none")
      ->capture_default_str();
  app.add_option("--port-file", options.port_file, "Gets {\"grpc_port\":N,\"http_port\":N} once serving");
  app.add_option("--lease-ms", options.lease_ms, "How long a worker's lease lasts")->capture_default_str();
  app.add_option("--worker-lost-ms", options.worker_lost_ms, "Silence after which a worker is lost")
      ->capture_default_str();
  app.add_option("--sync-hold-ms", options.sync_hold_ms, "How long a worker's Sync is parked")->capture_default_str();
  app.add_option("--log-level", log_level, "What goes to stderr")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  const longhaul::server::MaintenanceCommands maintenance(&app, &options.state_dir);
  CLI11_PARSE(app, argc, argv);
  if (maintenance.chosen()) return maintenance.Run(std::cout, std::cerr);

  const sigset_t stop_signals = BlockStopSignals();
  std::signal(SIGPIPE, SIG_IGN);
  spdlog::set_default_logger(spdlog::stderr_color_mt("longhauld"));
  spdlog::set_level(spdlog::level::from_str(log_level));

  const longhaul::RealClock clock;
  auto server = longhaul::server::Server::Start(options, &clock);
  if (!server.ok()) {
    std::fprintf(stderr, "longhauld: %s\n", std::string(server.status().message()).c_str());
    return 1;
  }
  spdlog::info("serving gRPC on port {} and http on port {}, state in {}", (*server)->grpc_port(),
               (*server)->http_port(), options.state_dir);
  int signal = 0;
  while (sigwait(&stop_signals, &signal) != 0) {
  }
  spdlog::info("stopping: {}", signal == SIGINT ? "SIGINT" : "SIGTERM");
  (*server)->Stop();
  return 0;
}
