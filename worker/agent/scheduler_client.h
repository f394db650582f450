// What the agent asks of the scheduler, as an interface: gRPC is behind it in grpc_client.h, a fake in the tests.
//
// Errors are the scheduler's: UNAVAILABLE (also DEADLINE_EXCEEDED and CANCELLED) may be asked again; reasons
// SESSION_CLOSED and LEASE_FENCED mean what worker_service.proto says.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "longhaul/v1/blob_service.pb.h"
#include "longhaul/v1/worker_service.pb.h"

namespace longhaul::agent {

// Set by whoever has lost interest in a transfer; the transfer looks at it between chunks and ends with CANCELLED.
using CancelFlag = std::shared_ptr<std::atomic<bool>>;
inline CancelFlag MakeCancelFlag() { return std::make_shared<std::atomic<bool>>(false); }

// Thread-safe.
class SchedulerClient {
 public:
  virtual ~SchedulerClient() = default;

  // Asynchronous: `done` runs once, on any thread, perhaps before the call returns.
  virtual void OpenSession(const v1::OpenSessionRequest& request,
                           std::function<void(absl::StatusOr<v1::OpenSessionResponse>)> done) = 0;
  // The scheduler may park it: `deadline_ms` is for the answer.
  virtual void Sync(const v1::SyncRequest& request, int64_t deadline_ms,
                    std::function<void(absl::StatusOr<v1::SyncResponse>)> done) = 0;

  // Blocking.
  virtual absl::Status CommitCheckpoint(const v1::CommitCheckpointRequest& request) = 0;
  virtual absl::Status CommitArtifact(const v1::CommitArtifactRequest& request) = 0;
  // The stream's bytes that the scheduler has now.
  virtual absl::StatusOr<int64_t> AppendLog(const v1::AppendLogRequest& request) = 0;
  virtual absl::StatusOr<std::vector<v1::BlobName>> FindMissing(const std::vector<v1::BlobName>& blobs) = 0;
  // Uploads the file from where an earlier upload ended. OK means that the scheduler has verified it.
  virtual absl::Status WriteBlob(const v1::BlobName& blob, const std::string& path, const CancelFlag& cancelled) = 0;
  // Hands over the bytes from `offset` on, in order. An error of `sink` ends it and is returned.
  virtual absl::Status ReadBlob(const v1::BlobName& blob, int64_t offset,
                                const std::function<absl::Status(std::string_view)>& sink,
                                const CancelFlag& cancelled) = 0;
};

// True where the same request may succeed later: the connection was lost, the scheduler is away or its disk is full, or
// the session is a new one by then.
bool IsRetryable(const absl::Status& status);

}  // namespace longhaul::agent
