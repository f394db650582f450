#include "server/rpc/worker_admin_service.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "longhaul/v1/worker_admin_service.grpc.pb.h"
#include "server/rpc/convert_worker.h"
#include "server/rpc/list_page.h"

namespace longhaul::server {
namespace {

class WorkerAdminService final : public v1::WorkerAdminService::Service {
 public:
  explicit WorkerAdminService(const RpcContext* context) : context_(*context) {}

  grpc::Status ListWorkers(grpc::ServerContext* call, const v1::ListWorkersRequest* request,
                           v1::ListWorkersResponse* response) override {
    return context_.gate.Unary(*call, "WorkerAdminService/ListWorkers", [&](const Caller& caller) {
      LH_ASSIGN_OR_RETURN(const int page_size, PageSize(request->page_size(), limits::kMaxPageSize));
      PageRoom room(page_size);
      for (const WorkerView& view : context_.dispatcher->Workers()) {  // by id
        if (view.worker->id <= request->page_token()) continue;
        v1::Worker shown = Show(view, caller);
        if (!room.Takes(shown)) {
          response->set_next_page_token(response->workers().rbegin()->id());
          break;
        }
        *response->add_workers() = std::move(shown);
      }
      return absl::OkStatus();
    });
  }

  grpc::Status GetWorker(grpc::ServerContext* call, const v1::GetWorkerRequest* request,
                         v1::Worker* response) override {
    return context_.gate.Unary(*call, "WorkerAdminService/GetWorker",
                               [&](const Caller& caller) { return Put(request->id(), caller, response); });
  }

  grpc::Status DrainWorker(grpc::ServerContext* call, const v1::DrainWorkerRequest* request,
                           v1::Worker* response) override {
    return SetDraining(*call, "WorkerAdminService/DrainWorker", request->id(), true, response);
  }

  grpc::Status UndrainWorker(grpc::ServerContext* call, const v1::UndrainWorkerRequest* request,
                             v1::Worker* response) override {
    return SetDraining(*call, "WorkerAdminService/UndrainWorker", request->id(), false, response);
  }

 private:
  grpc::Status SetDraining(const grpc::ServerContext& call, Method method, const std::string& id, bool draining,
                           v1::Worker* response) {
    return context_.gate.Mutation(call, method, [&](const Caller& caller, Audit* audit) {
      audit->record.target = id;
      LH_RETURN_IF_ERROR(context_.dispatcher->SetDraining(id, draining, audit));
      return Put(id, caller, response);
    });
  }

  // Which jobs of other projects run there is none of the caller's business; that something does is.
  static v1::Worker Show(WorkerView view, const Caller& caller) {
    for (WorkerView::Running& running : view.attempts) {
      if (!caller.MaySee(running.project)) running.key = {};
    }
    return ToProto(view);
  }

  absl::Status Put(const std::string& id, const Caller& caller, v1::Worker* response) {
    std::vector<WorkerView> views;
    if (!id.empty()) views = context_.dispatcher->Workers(id);
    if (views.empty()) {
      return MakeError(absl::StatusCode::kNotFound, "WORKER_NOT_FOUND", "there is no worker " + id);
    }
    *response = Show(std::move(views.front()), caller);
    return absl::OkStatus();
  }

  const RpcContext& context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerAdminService(const RpcContext* context) {
  return std::make_unique<WorkerAdminService>(context);
}

}  // namespace longhaul::server
