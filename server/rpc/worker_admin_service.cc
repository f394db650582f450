#include "server/rpc/worker_admin_service.h"

#include <optional>
#include <string>

#include "base/error.h"
#include "base/status_macros.h"
#include "longhaul/v1/worker_admin_service.grpc.pb.h"
#include "server/rpc/convert_worker.h"

namespace longhaul::server {
namespace {

class WorkerAdminService final : public v1::WorkerAdminService::Service {
 public:
  explicit WorkerAdminService(const RpcContext* context) : context_(*context) {}

  grpc::Status ListWorkers(grpc::ServerContext* call, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse* response) override {
    return context_.gate.Unary(*call, "WorkerAdminService/ListWorkers", Scope::kViewer, [&](const Caller&) {
      for (const WorkerView& view : context_.dispatcher->Workers()) *response->add_workers() = ToProto(view);
      return absl::OkStatus();
    });
  }

  grpc::Status GetWorker(grpc::ServerContext* call, const v1::GetWorkerRequest* request,
                         v1::Worker* response) override {
    return context_.gate.Unary(*call, "WorkerAdminService/GetWorker", Scope::kViewer,
                               [&](const Caller&) { return Put(request->id(), response); });
  }

  grpc::Status DrainWorker(grpc::ServerContext* call, const v1::DrainWorkerRequest* request,
                           v1::Worker* response) override {
    return context_.gate.Unary(*call, "WorkerAdminService/DrainWorker", Scope::kAdmin,
                               [&](const Caller&) { return SetDraining(request->id(), true, response); });
  }

  grpc::Status UndrainWorker(grpc::ServerContext* call, const v1::UndrainWorkerRequest* request,
                             v1::Worker* response) override {
    return context_.gate.Unary(*call, "WorkerAdminService/UndrainWorker", Scope::kAdmin,
                               [&](const Caller&) { return SetDraining(request->id(), false, response); });
  }

 private:
  absl::Status SetDraining(const std::string& id, bool draining, v1::Worker* response) {
    LH_RETURN_IF_ERROR(context_.dispatcher->SetDraining(id, draining).status());
    return Put(id, response);
  }

  absl::Status Put(const std::string& id, v1::Worker* response) {
    for (const WorkerView& view : context_.dispatcher->Workers()) {
      if (view.worker.id != id) continue;
      *response = ToProto(view);
      return absl::OkStatus();
    }
    return MakeError(absl::StatusCode::kNotFound, "WORKER_NOT_FOUND", "there is no worker " + id);
  }

  const RpcContext& context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerAdminService(const RpcContext* context) {
  return std::make_unique<WorkerAdminService>(context);
}

}  // namespace longhaul::server
