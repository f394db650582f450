#include "server/rpc/health_service.h"

#include <optional>
#include <utility>

#include "base/error.h"
#include "base/net_address.h"
#include "base/status_macros.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/rpc/stream_reactor.h"

namespace longhaul::server {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

namespace {

constexpr Method kCheck("grpc.health.v1.Health/Check");
constexpr Method kWatch("grpc.health.v1.Health/Watch");

// Whoever asks, whatever credentials it shows: its host is what has a rate and streams.
Caller CallerOf(const grpc::ServerContextBase& call) {
  Caller caller;
  caller.host = HostOfPeer(call.peer());
  caller.name = "anonymous at " + HostGroup(caller.host);
  return caller;
}

HealthCheckResponse::ServingStatus NumberOf(HealthService::Status status) {
  switch (status) {
    case HealthService::Status::kServing:
      return HealthCheckResponse::SERVING;
    case HealthService::Status::kNotServing:
      return HealthCheckResponse::NOT_SERVING;
    case HealthService::Status::kUnknownService:
      break;
  }
  return HealthCheckResponse::SERVICE_UNKNOWN;
}

absl::Status ShuttingDown() {
  return MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is shutting down; try again");
}

}  // namespace

class HealthWatch final : public StreamReactor<HealthCheckResponse> {
 public:
  HealthWatch(const Gate* gate, StreamCaller caller, HealthService* health, std::string service)
      : StreamReactor(gate, kWatch, std::move(caller)), service_(std::move(service)), health_(health) {}

 private:
  bool Next(HealthCheckResponse* response) override {
    const HealthService::Status status = health_->StatusOf(service_);
    if (told_ == status) {
      if (health_->shut_down()) end_ = ShuttingDown();  // and not before the last change is told
      return false;
    }
    told_ = status;
    response->set_status(NumberOf(status));
    return true;
  }
  void Detach() override { health_->Remove(this); }

  const std::string service_;
  HealthService* const health_;
  std::optional<HealthService::Status> told_;
};

namespace {

class HealthCalls final : public Health::CallbackService {
 public:
  HealthCalls(const Gate* gate, HealthService* health) : gate_(*gate), health_(health) {}

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* call, const HealthCheckRequest* request,
                                  HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* const reactor = call->DefaultReactor();
    reactor->Finish(gate_.End(kCheck, Answer(*call, *request, response)));
    return reactor;
  }

  grpc::ServerWriteReactor<HealthCheckResponse>* Watch(grpc::CallbackServerContext* call,
                                                       const HealthCheckRequest* request) override {
    absl::StatusOr<StreamCaller> caller = Admit(*call);
    if (!caller.ok()) return new EndedStream<HealthCheckResponse>(gate_.End(kWatch, caller.status()));
    auto watch = std::make_shared<HealthWatch>(&gate_, *std::move(caller), health_, request->service());
    watch->Live();
    health_->Add(watch);
    return watch.get();
  }

 private:
  absl::Status Answer(const grpc::ServerContextBase& call, const HealthCheckRequest& request,
                      HealthCheckResponse* response) const {
    LH_RETURN_IF_ERROR(gate_.limits()->TakeCall(CallerOf(call)));
    const HealthService::Status status = health_->StatusOf(request.service());
    if (status == HealthService::Status::kUnknownService) {
      return MakeError(absl::StatusCode::kNotFound, "UNKNOWN_SERVICE", "there is no service " + request.service());
    }
    response->set_status(NumberOf(status));
    return absl::OkStatus();
  }

  absl::StatusOr<StreamCaller> Admit(const grpc::ServerContextBase& call) const {
    Caller caller = CallerOf(call);
    LH_RETURN_IF_ERROR(gate_.limits()->TakeCall(caller));
    LH_ASSIGN_OR_RETURN(CallLimits::Slot slot, gate_.limits()->TakeStream(caller, ""));
    return StreamCaller{std::move(caller), std::move(slot), nullptr, nullptr};
  }

  const Gate& gate_;
  HealthService* const health_;
};

}  // namespace

HealthService::HealthService(const RpcContext* context, const std::vector<std::string>& services)
    : services_(services.begin(), services.end()), service_(std::make_unique<HealthCalls>(&context->gate, this)) {}

HealthService::~HealthService() = default;

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  if (!service.empty() && !services_.contains(service)) return Status::kUnknownService;
  return serving_.load() ? Status::kServing : Status::kNotServing;
}

void HealthService::Add(const std::shared_ptr<HealthWatch>& watch) {
  {
    std::lock_guard lock(mutex_);
    watches_[watch.get()] = watch;
  }
  watch->Pump();
}

void HealthService::Remove(HealthWatch* watch) {
  std::shared_ptr<HealthWatch> last;  // goes without the lock
  std::lock_guard lock(mutex_);
  const auto found = watches_.find(watch);
  if (found == watches_.end()) return;
  last = std::move(found->second);
  watches_.erase(found);
}

std::vector<std::shared_ptr<HealthWatch>> HealthService::Watches() {
  std::vector<std::shared_ptr<HealthWatch>> watches;
  std::lock_guard lock(mutex_);
  for (const auto& [key, watch] : watches_) watches.push_back(watch);
  return watches;
}

void HealthService::SetServing(bool serving) {
  serving_.store(serving);
  for (const std::shared_ptr<HealthWatch>& watch : Watches()) watch->Pump();
}

void HealthService::Shutdown() {
  shut_down_.store(true);
  for (const std::shared_ptr<HealthWatch>& watch : Watches()) watch->Pump();
}

}  // namespace longhaul::server
