// longhauld: the scheduler, and the commands on its state folder. Flags, signals, and one line on stderr where it
// cannot start.
#include <sys/stat.h>

#include <csignal>
#include <iostream>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "base/clock.h"
#include "base/process.h"
#include "base/program/command_line.h"
#include "base/program/error_text.h"
#include "server/access_commands.h"
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

constexpr char kSeeHelp[] = "`longhauld --help` lists the commands and flags; README.md tells how it is run";

// What went wrong and what to do; the exit code.
int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << longhaul::program::DescribeErrorInLine("longhauld", longhaul::program::LocalFileError(status), kSeeHelp);
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

void AddAccessOptions(CLI::App& app, longhaul::server::ServerOptions* options) {
  app.add_option("--tls-cert", options->tls_certificate_file,
                 "PEM: our certificate, then its chain. With --tls-key: TLS, on any address, for gRPC and the page");
  app.add_option("--tls-key", options->tls_key_file, "PEM: the key of --tls-cert");
  app.add_option("--tls-client-ca", options->tls_client_ca_file,
                 "PEM: who signs workers' certificates; a certificate's common name is its worker's id");
  app.add_flag("--tls-require-client-cert", options->tls_require_client_cert,
               "gRPC clients without a certificate get no connection");
  app.add_flag("--require-token", options->require_token,
               "A token of everybody: on the loopback, and beside a client certificate");
  app.add_option("--calls-per-second", options->calls_per_second, "Of one caller on one host, in the long run")
      ->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  // Tokens' hashes, datasets, logs: nobody else's business on this machine.
  ::umask(0077);
  longhaul::server::ServerOptions options;
  std::string log_level = "info";
  CLI::App app("The Longhaul scheduler.", "longhauld");
  app.set_version_flag("--version", std::string("longhauld ") + longhaul::server::kVersion);
  app.footer(
      "\nExit codes: 0 stopped in order or done, 1 it cannot run or the command failed, 2 a flag or its value is "
      "wrong.");
  app.fallthrough();
  app.add_option("--state-dir", options.state_dir, "Folder of the database, blobs and logs; made if absent")
      ->required();
  app.add_option("--listen", options.listen, "gRPC: HOST:PORT; off the loopback only with TLS; port 0 = any")
      ->capture_default_str();
  app.add_option("--http-listen", options.http_listen, "Page and /metrics: HOST:PORT, as --listen; empty = none")
      ->capture_default_str();
  app.add_option("--port-file", options.port_file, "Gets {\"grpc_port\":N,\"http_port\":N} once serving");
  app.add_option("--lease-ms", options.lease_ms, "How long a worker's lease lasts")->capture_default_str();
  app.add_option("--worker-lost-ms", options.worker_lost_ms, "Silence after which a worker is lost")
      ->capture_default_str();
  app.add_option("--sync-hold-ms", options.sync_hold_ms, "How long a worker's Sync is parked")->capture_default_str();
  AddAccessOptions(app, &options);
  app.add_option("--preempt-after-ms", options.preempt_after_ms,
                 "How long an attempt runs undisturbed before a job of a higher class may take its place")
      ->capture_default_str();
  app.add_option("--quota", options.quotas,
                 "What a project may hold at once: PROJECT:jobs=N,vram=SIZE,ram=SIZE,threads=N; \"*\" = any other; "
                 "may be repeated")
      ->type_name("QUOTA");
  app.add_option("--log-level", log_level, "What goes to stderr")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  const longhaul::server::AccessCommands commands(&app, &options.state_dir);
  const longhaul::server::MaintenanceCommands maintenance(&app, &options.state_dir);
  if (const std::optional<int> code = longhaul::program::ParseCommandLine(app, argc, argv)) return *code;
  if (maintenance.chosen()) return maintenance.Run(std::cout, std::cerr);

  const longhaul::RealClock clock;
  if (commands.chosen()) return Report(commands.Run(clock, std::cout, std::cerr));
  const sigset_t stop_signals = BlockStopSignals();
  longhaul::RaiseOpenFileLimit();
  std::signal(SIGPIPE, SIG_IGN);
  spdlog::set_default_logger(spdlog::stderr_color_mt("longhauld"));
  spdlog::set_level(spdlog::level::from_str(log_level));
  auto server = longhaul::server::Server::Start(options, &clock);
  if (!server.ok()) return Report(server.status());
  spdlog::info("serving gRPC on port {} and http on port {}{}, state in {}", (*server)->grpc_port(),
               (*server)->http_port(), options.tls_certificate_file.empty() ? "" : " with TLS", options.state_dir);
  int signal = 0;
  while (sigwait(&stop_signals, &signal) != 0) {
  }
  spdlog::info("stopping: {}", signal == SIGINT ? "SIGINT" : "SIGTERM");
  (*server)->Stop();
  return 0;
}
