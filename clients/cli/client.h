// The scheduler's services behind one channel, with errors as absl::Status.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "clients/channel/channel.h"
#include "clients/cli/rpc_error.h"
#include "clients/cli/terminal.h"
#include "longhaul/v1/blob_service.grpc.pb.h"
#include "longhaul/v1/fine_tune_service.grpc.pb.h"
#include "longhaul/v1/worker_admin_service.grpc.pb.h"

namespace longhaul::cli {

inline constexpr int64_t kUnaryTimeoutMs = 30'000;

// A connection to the scheduler, made when it is first needed. Errors of OpenChannel (clients/channel/channel.h).
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenCliChannel(const channel::ChannelOptions& options);

// Thread-compatible. Ctrl-C (`env.stop`) cancels the call in flight. `env` must outlive the client.
class Client {
 public:
  Client(std::string address, std::shared_ptr<grpc::Channel> channel, const CliEnv& env);

  const std::string& address() const { return address_; }
  const CliEnv& env() const { return env_; }
  v1::FineTuneService::Stub& jobs() { return *jobs_; }
  v1::BlobService::Stub& blobs() { return *blobs_; }
  v1::WorkerAdminService::Stub& workers() { return *workers_; }

  // client.Call(client.jobs(), &v1::FineTuneService::Stub::GetFineTuneJob, request)
  template <class Stub, class Request, class Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    grpc::ClientContext context;
    SetDeadline(context, kUnaryTimeoutMs);
    StopSignal::Scope scope(*env_.stop, [&context] { context.TryCancel(); });
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (!status.ok()) return Error(status);
    return response;
  }

  // The whole of a paged list: what the pages say, one behind the other, as one response.
  template <class Stub, class Request, class Response>
  absl::StatusOr<Response> CallAllPages(Stub& stub,
                                        grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                        Request request) {
    Response all;
    do {
      absl::StatusOr<Response> page = Call(stub, method, request);
      if (!page.ok()) return page.status();
      request.set_page_token(page->next_page_token());
      page->clear_next_page_token();
      all.MergeFrom(*page);
    } while (!request.page_token().empty());
    return all;
  }

  // Before a call is made again whose connection broke off: waits so long, and then for a connection, a second at most.
  // False where Ctrl-C came.
  bool WaitToTryAgain(int64_t ms);
  void SetDeadline(grpc::ClientContext& context, int64_t from_now_ms) const;
  // CANCELLED INTERRUPTED where Ctrl-C was the cause.
  absl::Status Error(const grpc::Status& status) const;

  // `text` is an id, or the beginning of one with or without "ftjob-". NOT_FOUND names it; INVALID_ARGUMENT
  // AMBIGUOUS_ID lists the candidates.
  absl::StatusOr<v1::Job> FindJob(const std::string& text);
  absl::StatusOr<v1::Worker> FindWorker(const std::string& text);

 private:
  static constexpr int64_t kConnectWaitMs = 1'000;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  const CliEnv& env_;
  std::unique_ptr<v1::FineTuneService::Stub> jobs_;
  std::unique_ptr<v1::BlobService::Stub> blobs_;
  std::unique_ptr<v1::WorkerAdminService::Stub> workers_;
};

}  // namespace longhaul::cli
