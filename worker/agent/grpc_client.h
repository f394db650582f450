// The scheduler over gRPC. The one file of the agent that knows it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/channel/channel.h"
#include "worker/agent/scheduler_client.h"

namespace longhaul::agent {

// A connection on which calls wait and nothing comes is asked after `silent_ms` whether it lives, and ends, and its
// calls with it as UNAVAILABLE, where there is no answer for `answer_ms`: the other host may have lost its power, or a
// firewall between them its memory. Twice that is less than a lease, and no scheduler takes it for too often
// (limits::kMinClientPingMs).
struct PingTimes {
  int64_t silent_ms = 15'000;
  int64_t answer_ms = 10'000;
};

// Thread-safe. Calls that wait for nobody to answer end after thirty seconds with DEADLINE_EXCEEDED.
class GrpcSchedulerClient final : public SchedulerClient {
 public:
  // Connects lazily; an absent scheduler is UNAVAILABLE at each call. Changed TLS files make a new connection; a
  // changed token file needs none. Errors of channel::OpenChannel.
  static absl::StatusOr<std::unique_ptr<GrpcSchedulerClient>> Open(const channel::ChannelOptions& options,
                                                                   const PingTimes& pings = {});
  // Shutdown first.
  ~GrpcSchedulerClient() override;

  // Cancels every call, now and from now on, and waits for the asynchronous ones to have given their answers.
  void Shutdown();

  void OpenSession(const v1::OpenSessionRequest& request,
                   std::function<void(absl::StatusOr<v1::OpenSessionResponse>)> done) override;
  void Sync(const v1::SyncRequest& request, int64_t deadline_ms,
            std::function<void(absl::StatusOr<v1::SyncResponse>)> done) override;
  absl::Status CommitCheckpoint(const v1::CommitCheckpointRequest& request) override;
  absl::Status CommitArtifact(const v1::CommitArtifactRequest& request) override;
  absl::StatusOr<int64_t> AppendLog(const v1::AppendLogRequest& request) override;
  absl::StatusOr<std::vector<v1::BlobName>> FindMissing(const std::vector<v1::BlobName>& blobs) override;
  absl::Status WriteBlob(const v1::BlobName& blob, const std::string& path, const CancelFlag& cancelled) override;
  absl::Status ReadBlob(const v1::BlobName& blob, int64_t offset,
                        const std::function<absl::Status(std::string_view)>& sink,
                        const CancelFlag& cancelled) override;

 private:
  // The bytes from `offset` on, to the end.
  absl::Status SendBlob(const v1::BlobName& blob, const std::string& path, int64_t offset, const CancelFlag& cancelled);

  struct Impl;
  explicit GrpcSchedulerClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::agent
