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
#include "server/rpc/session_seal.h"

namespace longhaul::server {
namespace {

using Base = v1::WorkerService::WithCallbackMethod_Sync<v1::WorkerService::Service>;

class WorkerService final : public Base {
 public:
  explicit WorkerService(const RpcContext* context) : context_(*context), seal_(context->gate.seal()) {}

  grpc::Status OpenSession(grpc::ServerContext* call, const v1::OpenSessionRequest* request,
                           v1::OpenSessionResponse* response) override {
    return context_.gate.Mutation(*call, "WorkerService/OpenSession", [&](const Caller& caller, Audit* audit) {
      audit->record.target = request->worker_id();
      LH_RETURN_IF_ERROR(CheckWorkerId(caller, request->worker_id()));
      absl::StatusOr<SessionInput> input = FromProto(*request);
      if (!input.ok()) return input.status();
      input->caller = caller.Has(Scope::kAdmin) ? "" : caller.name;
      input->may_take_over = !caller.worker_id.empty();
      absl::StatusOr<SessionReply> reply = context_.dispatcher->OpenSession(*std::move(input), audit);
      if (!reply.ok()) return reply.status();
      *response = ToProto(*reply);
      response->set_session_id(seal_.Seal(reply->session_id, caller));
      return absl::OkStatus();
    });
  }

  // The dispatcher answers exactly once, also after the agent went away: the reactor waits for it.
  grpc::ServerUnaryReactor* Sync(grpc::CallbackServerContext* call, const v1::SyncRequest* request,
                                 v1::SyncResponse* response) override {
    grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
    absl::StatusOr<SyncInput> input = AdmitSync(*call, *request);
    if (!input.ok()) {
      reactor->Finish(context_.gate.End("WorkerService/Sync", input.status()));
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
    return context_.gate.Mutation(*call, "WorkerService/CommitCheckpoint", [&](const Caller& caller, Audit* audit) {
      audit->record.target = request->key().job_id();
      LH_ASSIGN_OR_RETURN(const std::string session_id, seal_.Open(request->session_id(), caller));
      absl::StatusOr<Checkpoint> checkpoint = FromProto(request->checkpoint());
      if (!checkpoint.ok()) return checkpoint.status();
      const AttemptKey key = FromProto(request->key());
      checkpoint->attempt = key.attempt;
      return context_.dispatcher->CommitCheckpoint(session_id, key, *std::move(checkpoint), audit);
    });
  }

  grpc::Status CommitArtifact(grpc::ServerContext* call, const v1::CommitArtifactRequest* request,
                              v1::CommitResponse*) override {
    return context_.gate.Mutation(*call, "WorkerService/CommitArtifact", [&](const Caller& caller, Audit* audit) {
      audit->record.target = request->key().job_id();
      LH_ASSIGN_OR_RETURN(const std::string session_id, seal_.Open(request->session_id(), caller));
      absl::StatusOr<std::vector<NamedBlob>> files = FromProto(request->artifact().files(), "artifact.files");
      if (!files.ok()) return files.status();
      return context_.dispatcher->CommitArtifact(session_id, FromProto(request->key()), *std::move(files),
                                                 FromProto(request->result()), audit);
    });
  }

  grpc::Status AppendLog(grpc::ServerContext* call, const v1::AppendLogRequest* request,
                         v1::AppendLogResponse* response) override {
    return context_.gate.Unary(*call, "WorkerService/AppendLog", [&](const Caller& caller) {
      if (request->data().size() > static_cast<size_t>(limits::kBlobChunkBytes)) {
        return InvalidField("data", "has " + std::to_string(request->data().size()) + " bytes; at most " +
                                        std::to_string(limits::kBlobChunkBytes));
      }
      if (request->offset() < 0) {
        return InvalidField("offset", "is " + std::to_string(request->offset()) + "; must be 0 or more");
      }
      LH_ASSIGN_OR_RETURN(const std::string session_id, seal_.Open(request->session_id(), caller));
      const AttemptKey key = FromProto(request->key());
      LH_RETURN_IF_ERROR(context_.dispatcher->CheckFence(session_id, key));
      LH_ASSIGN_OR_RETURN(
          const int64_t committed_bytes,
          context_.logs->Append(key.job_id, key.attempt, request->offset(), request->data(), request->complete()));
      response->set_committed_bytes(committed_bytes);
      context_.hub->OnLogAppended(key.job_id, key.attempt);
      return absl::OkStatus();
    });
  }

 private:
  // A certificate, and a token made for one worker, name the worker that the caller is.
  static absl::Status CheckWorkerId(const Caller& caller, const std::string& worker_id) {
    if (caller.worker_id.empty() || caller.worker_id == worker_id) return absl::OkStatus();
    return MakeError(
        absl::StatusCode::kPermissionDenied, "OTHER_WORKER",
        "these credentials are of worker " + caller.worker_id + ": start it with --worker-id " + caller.worker_id);
  }

  absl::StatusOr<SyncInput> AdmitSync(const grpc::CallbackServerContext& call, const v1::SyncRequest& request) const {
    LH_ASSIGN_OR_RETURN(const Caller caller, context_.gate.Admit(call, "WorkerService/Sync"));
    LH_ASSIGN_OR_RETURN(const std::string session_id, seal_.Open(request.session_id(), caller));
    LH_ASSIGN_OR_RETURN(SyncInput input, FromProto(request));
    input.session_id = session_id;
    return input;
  }

  const RpcContext& context_;
  const SessionSeal& seal_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(const RpcContext* context) {
  return std::make_unique<WorkerService>(context);
}

}  // namespace longhaul::server
