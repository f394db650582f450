#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/process.h"
#include "base/status_macros.h"
#include "base/tls_material.h"
#include "server/authenticator.h"
#include "server/call_limits.h"
#include "server/core/access.h"
#include "server/core/demands.h"
#include "server/core/quota.h"
#include "server/dispatcher.h"
#include "server/dispatcher_stats.h"
#include "server/http/http_access.h"
#include "server/http/http_server.h"
#include "server/http/metrics.h"
#include "server/http/page.h"
#include "server/listen_address.h"
#include "server/log_sweeper.h"
#include "server/request_stats.h"
#include "server/rpc/event_hub.h"
#include "server/rpc/progress_text.h"
#include "server/rpc/rpc_context.h"
#include "server/rpc/rpc_server.h"
#include "server/version.h"
#include "spdlog/spdlog.h"
#include "storage/access_store.h"
#include "storage/blob_store.h"
#include "storage/job_store.h"
#include "storage/log_store.h"

namespace longhaul::server {
namespace {

constexpr int64_t kShutdownGraceMs = 5'000;
constexpr auto kCollectEvery = std::chrono::seconds(60);

absl::Status CheckPositive(const char* flag, int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_OPTION",
                   std::string(flag) + " is " + std::to_string(value) + "; must be 1 or more");
}

absl::Status CheckTimes(const ServerOptions& options) {
  LH_RETURN_IF_ERROR(CheckPositive("--lease-ms", options.lease_ms));
  LH_RETURN_IF_ERROR(CheckPositive("--worker-lost-ms", options.worker_lost_ms));
  LH_RETURN_IF_ERROR(CheckPositive("--sync-hold-ms", options.sync_hold_ms));
  LH_RETURN_IF_ERROR(CheckPositive("--preempt-after-ms", options.preempt_after_ms));
  if (options.worker_lost_ms >= options.lease_ms) return absl::OkStatus();
  // A worker may hold its lease to the end: lost before that, two workers would have one job.
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_OPTION",
                   "--worker-lost-ms is " + std::to_string(options.worker_lost_ms) + "; must be at least --lease-ms, " +
                       std::to_string(options.lease_ms));
}

absl::Status CheckAccess(const ServerOptions& options) {
  LH_RETURN_IF_ERROR(CheckPositive("--calls-per-second", options.calls_per_second));
  const auto bad = [](const std::string& what) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_OPTION", what);
  };
  if (options.tls_certificate_file.empty() != options.tls_key_file.empty()) {
    return bad("--tls-cert and --tls-key go together");
  }
  if (options.tls_certificate_file.empty() && !options.tls_client_ca_file.empty()) {
    return bad("--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (options.tls_client_ca_file.empty() && options.tls_require_client_cert) {
    return bad("--tls-require-client-cert needs --tls-client-ca");
  }
  return absl::OkStatus();
}

ClientCertificates ClientCertificatesOf(const ServerOptions& options) {
  if (options.tls_client_ca_file.empty()) return ClientCertificates::kNone;
  return options.tls_require_client_cert ? ClientCertificates::kRequired : ClientCertificates::kAsked;
}

// Everything else needs descriptors, too: as many as limits::kReservedDescriptors, of a process that has few the half.
int AffordableConnections() {
  const int64_t files = OpenFileLimit();
  const int64_t left = std::max(files - limits::kReservedDescriptors, files / 2);
  const int most = static_cast<int>(std::clamp<int64_t>(left, 1, limits::kMaxConnections));
  if (most < limits::kMaxConnections) {
    spdlog::warn(
        "this process may open {} files, which is enough for {} connections of {}: raise its limit (ulimit -n, "
        "LimitNOFILE= of a systemd unit)",
        files, most, limits::kMaxConnections);
  }
  return most;
}

}  // namespace

// In dependency order: destroyed from the last to the first.
struct Server::Impl {
  const Clock* clock = nullptr;
  std::unique_ptr<Store> store;
  std::unique_ptr<storage::BlobStore> blobs;
  std::unique_ptr<storage::LogStore> logs;
  std::unique_ptr<storage::AccessStore> access;
  std::unique_ptr<TlsReloader> tls;  // null = plaintext
  RequestStats request_stats;
  std::unique_ptr<Authenticator> authenticator;
  std::unique_ptr<CallLimits> call_limits;
  std::unique_ptr<EventHub> hub;
  std::unique_ptr<Dispatcher> dispatcher;
  PlanMemo plans{&MemoryPlanner()};
  std::unique_ptr<TransferWatch> transfers;
  std::unique_ptr<ConnectionTable> connections;
  std::unique_ptr<RpcContext> context;
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<HttpAccess> http_access;
  std::unique_ptr<HttpServer> http;
  std::optional<LogSweeper> log_sweeper;
  std::jthread collector;
  bool stopped = false;

  absl::Status OpenState(const ServerOptions& options) {
    LH_ASSIGN_OR_RETURN(store, storage::OpenJobStore(options.state_dir));
    LH_ASSIGN_OR_RETURN(blobs, storage::BlobStore::Open(options.state_dir));
    LH_ASSIGN_OR_RETURN(logs, storage::LogStore::Open(options.state_dir));
    LH_ASSIGN_OR_RETURN(access, storage::AccessStore::OpenToRead(options.state_dir));
    LH_ASSIGN_OR_RETURN(const std::vector<TokenRecord> tokens, access->ListTokens());
    const auto held = std::count_if(tokens.begin(), tokens.end(), [this](const TokenRecord& token) {
      return CheckStillValid(&token, clock->WallMicros()) == TokenVerdict::kHeld;
    });
    if (held > 0) {
      spdlog::warn(
          "this state was restored from a backup: {} of its tokens are refused until they are confirmed, because one "
          "may have been revoked since; see `longhauld token list` and `longhauld token confirm`",
          held);
    }
    return absl::OkStatus();
  }

  void OpenAccess(const ServerOptions& options) {
    authenticator = std::make_unique<Authenticator>(Authenticator::Options{tls != nullptr, options.require_token},
                                                    access.get(), clock, &request_stats);
    call_limits = std::make_unique<CallLimits>(
        CallLimits::Options{options.calls_per_second, options.call_burst, options.streams_per_caller,
                            options.transfers_per_caller, options.log_streams_per_caller},
        clock);
  }

  absl::Status StartDispatcher(const ServerOptions& options) {
    hub = std::make_unique<EventHub>(options.heartbeat_ms);
    Dispatcher::Options dispatching{
        options.lease_ms, options.worker_lost_ms, options.sync_hold_ms, options.preempt_after_ms, {}};
    for (const std::string& quota : options.quotas) LH_RETURN_IF_ERROR(ParseQuota(quota, &dispatching.quotas));
    dispatcher = std::make_unique<Dispatcher>(std::move(dispatching), store.get(), blobs.get(), clock, hub.get());
    return dispatcher->Start();
  }

  absl::Status StartServing(const ServerOptions& options, const ListenAddress& grpc_address,
                            const std::optional<ListenAddress>& http_address) {
    transfers = std::make_unique<TransferWatch>(clock, options.transfer_stall_ms);
    const int most = std::min(options.connections, AffordableConnections());
    // No host may have all of them, however few they are.
    connections = std::make_unique<ConnectionTable>(most, std::min(std::max(most / 2, 1), options.connections_per_host),
                                                    std::min(most / 8, limits::kLoopbackConnections));
    context = std::make_unique<RpcContext>(RpcContext{
        Gate(authenticator.get(), call_limits.get(), &request_stats, clock, dispatcher.get(), connections.get()),
        dispatcher.get(), store.get(), blobs.get(), logs.get(), hub.get(), &plans, transfers.get()});
    const RpcServer::Options serving{ClientCertificatesOf(options), options.connection_idle_ms,
                                     options.connection_age_ms, options.connection_age_grace_ms};
    LH_ASSIGN_OR_RETURN(rpc, RpcServer::Start(grpc_address, serving, context.get(), connections.get(), tls.get()));
    if (!http_address.has_value()) return absl::OkStatus();
    http_access = std::make_unique<HttpAccess>(authenticator.get(), call_limits.get(), &request_stats);
    HttpPages pages;
    pages["/"] = http_access->ForViewers([this](const Caller& caller) { return Page(caller); });
    pages["/metrics"] = http_access->ForViewersOfAll([this](const Caller&) { return Metrics(); });
    // For probes, which have no credentials: it says no more than that the port is open.
    pages["/healthz"] = [](const HttpRequest&) { return HttpReply{200, "text/plain; charset=utf-8", "ok\n"}; };
    LH_ASSIGN_OR_RETURN(http, HttpServer::Start(*http_address, std::move(pages), clock, tls.get()));
    return absl::OkStatus();
  }

  HttpReply Metrics() const {
    MetricsInput input{dispatcher->Stats(), request_stats.Read(), store->GetSizes(), kVersion, std::nullopt};
    if (tls != nullptr) input.tls = tls->counts();
    return {200, "text/plain; version=0.0.4; charset=utf-8", RenderMetrics(input)};
  }

  HttpReply Page(const Caller& caller) const {
    JobFilter filter;
    if (!caller.all_projects) filter.project = caller.project;
    filter.page_size = limits::kMaxPageJobs;
    absl::StatusOr<JobPage> jobs = store->ListJobs(filter);
    if (!jobs.ok()) return {503, "text/plain; charset=utf-8", std::string(jobs.status().message()) + "\n"};
    PageInput input;
    const std::vector<std::optional<WaitInfo>> waits = dispatcher->WaitsOf(jobs->jobs);
    for (size_t i = 0; i < jobs->jobs.size(); ++i) {
      Job& job = jobs->jobs[i];
      if (waits[i].has_value()) {
        job.reason = waits[i]->reason;
        job.reason_detail = waits[i]->detail;
      }
      std::string progress = ProgressText(job);
      input.jobs.push_back({std::move(job), std::move(progress)});
    }
    input.more_jobs = !jobs->next_page_token.empty();
    input.workers = dispatcher->Workers();
    input.now_wall_micros = clock->WallMicros();
    input.version = kVersion;
    HttpReply reply;
    reply.body = RenderPage(input);
    return reply;
  }

  LogSweeper MakeLogSweeper() {
    return LogSweeper({[this](const std::string& after, int most) { return store->ListDeletedJobs(after, most); },
                       [this](const std::string& id) { return logs->Delete(id); },
                       [this](std::vector<std::string> ids) { return dispatcher->ForgetDeletedJobs(std::move(ids)); },
                       [this](int most) { return logs->NextJobs(most); },
                       [this](const std::string& id) -> absl::StatusOr<bool> {
                         const absl::Status found = store->GetJob(id).status();
                         if (absl::IsNotFound(found)) return false;
                         LH_RETURN_IF_ERROR(found);
                         return true;
                       }});
  }

  // Forgets unreferenced blobs, stale uploads and the logs of deleted jobs, once a minute.
  void Collect(std::stop_token stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, stop, kCollectEvery, [&stop] { return stop.stop_requested(); })) {
      log_sweeper->Sweep();
      if (absl::StatusOr<int> removed = dispatcher->CollectBlobs(stop); !removed.ok()) {
        spdlog::warn("blob collection: {}", std::string(removed.status().message()));
      }
      const int64_t stale_wall_micros = clock->WallMicros() - limits::kBlobGraceHours * 3'600'000'000;
      if (absl::StatusOr<int> uploads = blobs->CollectUploads(stale_wall_micros); !uploads.ok()) {
        spdlog::warn("collection of unfinished uploads: {}", std::string(uploads.status().message()));
      }
    }
  }

  void Stop() {
    if (std::exchange(stopped, true)) return;
    collector = std::jthread();  // asks it to stop, and joins
    if (rpc != nullptr) rpc->Drain();
    if (hub != nullptr) hub->Shutdown();            // watches and log readers end
    if (dispatcher != nullptr) dispatcher->Stop();  // parked Syncs and waiting handlers are answered
    if (rpc != nullptr) rpc->Shutdown(kShutdownGraceMs);
    http.reset();
  }
};

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, const Clock* clock) {
  LH_RETURN_IF_ERROR(CheckTimes(options));
  LH_RETURN_IF_ERROR(CheckAccess(options));
  const bool with_tls = !options.tls_certificate_file.empty();
  LH_ASSIGN_OR_RETURN(const ListenAddress grpc_address, ParseListenAddress("--listen", options.listen, with_tls));
  std::optional<ListenAddress> http_address;
  if (!options.http_listen.empty()) {
    LH_ASSIGN_OR_RETURN(http_address, ParseListenAddress("--http-listen", options.http_listen, with_tls));
  }
  std::unique_ptr<Server> server(new Server(std::make_unique<Impl>()));
  Impl& impl = *server->impl_;
  impl.clock = clock;
  if (with_tls) {
    const TlsFiles files{options.tls_certificate_file, options.tls_key_file, options.tls_client_ca_file};
    LH_ASSIGN_OR_RETURN(impl.tls, TlsReloader::Open(files, clock));
  }
  LH_RETURN_IF_ERROR(impl.OpenState(options));
  impl.OpenAccess(options);
  LH_RETURN_IF_ERROR(impl.StartDispatcher(options));
  LH_RETURN_IF_ERROR(impl.StartServing(options, grpc_address, http_address));
  impl.log_sweeper.emplace(impl.MakeLogSweeper());
  impl.log_sweeper->Sweep();
  impl.collector = std::jthread([&impl](std::stop_token stop) { impl.Collect(std::move(stop)); });
  if (!options.port_file.empty()) {
    LH_RETURN_IF_ERROR(WriteFileAtomic(options.port_file, "{\"grpc_port\":" + std::to_string(server->grpc_port()) +
                                                              ",\"http_port\":" + std::to_string(server->http_port()) +
                                                              "}\n"));
  }
  return server;
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() { Stop(); }

int Server::grpc_port() const { return impl_->rpc->port(); }
int Server::http_port() const { return impl_->http == nullptr ? 0 : impl_->http->port(); }
void Server::Stop() { impl_->Stop(); }

}  // namespace longhaul::server
