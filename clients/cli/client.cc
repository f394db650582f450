#include "clients/cli/client.h"

#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "base/net_address.h"
#include "base/status_macros.h"

namespace longhaul::cli {
namespace {

constexpr char kIdPrefix[] = "ftjob-";
constexpr int kCandidatesShown = 10;

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenCliChannel(const channel::ChannelOptions& options) {
  LH_RETURN_IF_ERROR(CheckTarget("--server (or LONGHAUL_SERVER)", options.address));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxGrpcMessageBytes));
  // A restarted scheduler is found again within a second.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A watch over a dead link must end: five minutes is what a gRPC server allows by default.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 310'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  return channel::OpenChannel(options, arguments);
}

Client::Client(std::string address, std::shared_ptr<grpc::Channel> channel, const CliEnv& env)
    : address_(std::move(address)), channel_(std::move(channel)), env_(env) {
  jobs_ = v1::FineTuneService::NewStub(channel_);
  blobs_ = v1::BlobService::NewStub(channel_);
  workers_ = v1::WorkerAdminService::NewStub(channel_);
}

bool Client::WaitToTryAgain(int64_t ms) {
  if (env_.stop->WaitForMillis(ms)) return false;
  // gRPC sees what becomes of a connection only while a call waits for it. One that fails at once for what was last
  // seen does not: without this a scheduler that is back long since would not be found.
  channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::milliseconds(kConnectWaitMs));
  return !env_.stop->stopped();
}

void Client::SetDeadline(grpc::ClientContext& context, int64_t from_now_ms) const {
  context.set_deadline(
      std::chrono::system_clock::time_point(std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::microseconds(env_.clock->WallMicros() + from_now_ms * 1000))));
}

absl::Status Client::Error(const grpc::Status& status) const {
  if (!status.ok() && env_.stop->stopped()) {
    return MakeError(absl::StatusCode::kCancelled, "INTERRUPTED", "interrupted");
  }
  return FromGrpcStatus(status, address_);
}

absl::StatusOr<v1::Job> Client::FindJob(const std::string& text) {
  if (text.empty()) return InvalidField("id", "is empty; give a job's id or its beginning");
  // "ft" is the beginning of every id.
  const bool prefixed = text.rfind(kIdPrefix, 0) == 0 || std::string_view(kIdPrefix).rfind(text, 0) == 0;
  v1::ListFineTuneJobsRequest request;
  request.set_id_prefix(prefixed ? text : kIdPrefix + text);
  request.set_page_size(kCandidatesShown);
  LH_ASSIGN_OR_RETURN(const v1::ListFineTuneJobsResponse page,
                      Call(jobs(), &v1::FineTuneService::Stub::ListFineTuneJobs, request));
  std::vector<std::string> ids;
  for (const v1::Job& job : page.jobs()) {
    if (job.id() == request.id_prefix()) return job;
    ids.push_back(job.id());
  }
  if (ids.empty()) {
    return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "no job's id begins with '" + text + "'");
  }
  if (ids.size() == 1) return page.jobs(0);
  return MakeError(absl::StatusCode::kInvalidArgument, "AMBIGUOUS_ID",
                   "'" + text + "' is the beginning of more than one id: " + Join(ids) +
                       (page.next_page_token().empty() ? "" : ", ..."));
}

absl::StatusOr<v1::Worker> Client::FindWorker(const std::string& text) {
  LH_ASSIGN_OR_RETURN(const v1::ListWorkersResponse response,
                      CallAllPages(workers(), &v1::WorkerAdminService::Stub::ListWorkers, v1::ListWorkersRequest()));
  std::vector<const v1::Worker*> found;
  std::vector<std::string> ids;
  for (const v1::Worker& worker : response.workers()) {
    if (worker.id() == text) return worker;
    if (text.empty() || worker.id().rfind(text, 0) != 0) continue;
    found.push_back(&worker);
    ids.push_back(worker.id());
  }
  if (found.size() == 1) return *found[0];
  if (found.empty()) {
    return MakeError(absl::StatusCode::kNotFound, "WORKER_NOT_FOUND", "no worker's id begins with '" + text + "'");
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "AMBIGUOUS_ID",
                   "'" + text + "' is the beginning of more than one id: " + Join(ids));
}

}  // namespace longhaul::cli
