#include "server/rpc/worker_service.h"

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "longhaul/v1/worker_service.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/convert_worker.h"

namespace longhaul::server {
namespace {

using Base = v1::WorkerService::WithCallbackMethod_Sync<v1::WorkerService::Service>;

class WorkerService final : public Base {
 public:
  explicit WorkerService(const RpcContext* context) : context_(*context) {}

  grpc::Status OpenSession(grpc::ServerContext* call, const v1::OpenSessionRequest* request,
                           v1::OpenSessionResponse* response) override {
    return context_.gate.Unary(*call, "WorkerService/OpenSession", Scope::kWorker, [&](const Caller&) {
      absl::StatusOr<SessionInput> input = FromProto(*request);
      if (!input.ok()) return input.status();
      absl::StatusOr<SessionReply> reply = context_.dispatcher->OpenSession(*std::move(input));
      if (reply.ok()) *response = ToProto(*reply);
      return reply.status();
    });
  }

  // The dispatcher answers exactly once, also after the agent went away: the reactor waits for it.
  grpc::ServerUnaryReactor* Sync(grpc::CallbackServerContext* call, const v1::SyncRequest* request,
                                 v1::SyncResponse* response) override {
    grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
    absl::Status admitted = context_.gate.Admit(*call, Scope::kWorker).status();
    absl::StatusOr<SyncInput> input = FromProto(*request);
    if (admitted.ok()) admitted = input.status();
    if (!admitted.ok()) {
      reactor->Finish(context_.gate.End("WorkerService/Sync", admitted));
      return reactor;
    }
    context_.dispatcher->Sync(*std::move(input), [this, reactor, response](absl::StatusOr<SyncReply> reply) {
      absl::Status status = reply.status();
      if (status.ok()) {
        absl::StatusOr<v1::SyncResponse> converted = ToProto(*reply);
        status = converted.status();
        if (status.ok()) *response = *std::move(converted);
      }
      reactor->Finish(context_.gate.End("WorkerService/Sync", status));
    });
    return reactor;
  }

  grpc::Status CommitCheckpoint(grpc::ServerContext* call, const v1::CommitCheckpointRequest* request,
                                v1::CommitResponse*) override {
    return context_.gate.Unary(*call, "WorkerService/CommitCheckpoint", Scope::kWorker, [&](const Caller&) {
      absl::StatusOr<Checkpoint> checkpoint = FromProto(request->checkpoint());
      if (!checkpoint.ok()) return checkpoint.status();
      const AttemptKey key = FromProto(request->key());
      checkpoint->attempt = key.attempt;
      return context_.dispatcher->CommitCheckpoint(request->session_id(), key, *std::move(checkpoint));
    });
  }

  grpc::Status CommitArtifact(grpc::ServerContext* call, const v1::CommitArtifactRequest* request,
                              v1::CommitResponse*) override {
    return context_.gate.Unary(*call, "WorkerService/CommitArtifact", Scope::kWorker, [&](const Caller&) {
      absl::StatusOr<std::vector<NamedBlob>> files = FromProto(request->artifact().files(), "artifact.files");
      if (!files.ok()) return files.status();
      return context_.dispatcher->CommitArtifact(request->session_id(), FromProto(request->key()), *std::move(files),
                                                 request->result().SerializeAsString());
    });
  }

  grpc::Status AppendLog(grpc::ServerContext* call, const v1::AppendLogRequest* request,
                         v1::AppendLogResponse* response) override {
    return context_.gate.Unary(*call, "WorkerService/AppendLog", Scope::kWorker, [&](const Caller&) {
      if (request->data().size() > static_cast<size_t>(limits::kBlobChunkBytes)) {
        return InvalidField("data", "has " + std::to_string(request->data().size()) + " bytes; at most " +
                                        std::to_string(limits::kBlobChunkBytes));
      }
      if (request->offset() < 0) {
        return InvalidField("offset", "is " + std::to_string(request->offset()) + "; must be 0 or more");
      }
      const AttemptKey key = FromProto(request->key());
      LH_RETURN_IF_ERROR(context_.dispatcher->CheckFence(request->session_id(), key));
      LH_ASSIGN_OR_RETURN(
          const int64_t committed_bytes,
          context_.logs->Append(key.job_id, key.attempt, request->offset(), request->data(), request->complete()));
      response->set_committed_bytes(committed_bytes);
      context_.hub->OnLogAppended(key.job_id, key.attempt);
      return absl::OkStatus();
    });
  }

 private:
  const RpcContext& context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(const RpcContext* context) {
  return std::make_unique<WorkerService>(context);
}

}  // namespace longhaul::server
