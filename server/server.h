// longhauld without its flags: everything that runs, owned in dependency order. Tests start it in their own process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/limits.h"

namespace longhaul {
class Clock;
}

namespace longhaul::server {

struct ServerOptions {
  std::string state_dir;
  std::string listen = "127.0.0.1:7070";
  std::string http_listen = "127.0.0.1:7071";  // "" = no page and no /metrics
  std::string port_file;                       // "" = none; JSON {"grpc_port":N,"http_port":N}, once serving
  int64_t lease_ms = limits::kLeaseMs;
  int64_t worker_lost_ms = limits::kWorkerLostMs;
  int64_t sync_hold_ms = limits::kSyncHoldMs;
  int64_t heartbeat_ms = limits::kWatchHeartbeatMs;
  // TLS on both addresses: certificate and key, or neither. Read again when they change.
  std::string tls_certificate_file;
  std::string tls_key_file;
  std::string tls_client_ca_file;  // "" = workers show tokens, not certificates
  bool tls_require_client_cert = false;
  bool require_token = false;  // also of certificates, and on the loopback
  int64_t calls_per_second = limits::kMaxCallsPerSecond;
  int64_t call_burst = limits::kMaxCallBurst;
  int streams_per_caller = limits::kMaxStreamsPerCaller;
  int transfers_per_caller = limits::kMaxTransfersPerCaller;
  int log_streams_per_caller = limits::kMaxLogStreamsPerCaller;
  int64_t transfer_stall_ms = limits::kTransferStallMs;
  // Bounded by the process's limit of open files, too.
  int connections = limits::kMaxConnections;
  int connections_per_host = limits::kMaxConnectionsPerHost;
  int64_t connection_idle_ms = limits::kConnectionIdleMs;
  int64_t connection_age_ms = limits::kConnectionAgeMs;
  int64_t connection_age_grace_ms = limits::kConnectionAgeGraceMs;
  int64_t preempt_after_ms = limits::kPreemptMinRunMs;
  std::vector<std::string> quotas;  // server/core/quota.h has the form
};

class Server {
 public:
  // Opens the state folder and serves. `clock` must outlive the server. Errors, each one clear line: LOCKED,
  // SCHEMA_TOO_NEW, PERMISSION_DENIED, PORT_TAKEN, TLS_REQUIRED, TLS_MATERIAL, INVALID_ARGUMENT for the options.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, const Clock* clock);
  ~Server();  // Stop

  int grpc_port() const;
  int http_port() const;  // 0 = none

  // Ends watches and parked Syncs with UNAVAILABLE, answers what is in flight, closes the state. Trainers go on.
  void Stop();

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::server
