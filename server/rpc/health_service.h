// grpc.health.v1.Health: whether the server serves, for balancers, which have no credentials. Each of their hosts has
// the rate and the streams of one caller. Watch tells of each change until Shutdown.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "grpcpp/impl/service_type.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

class HealthWatch;

class HealthService {
 public:
  // Of the server as a whole ("") and of `services`. `context` must outlive this.
  HealthService(const RpcContext* context, const std::vector<std::string>& services);
  ~HealthService();

  // What gRPC registers. This must outlive the server.
  grpc::Service* service() { return service_.get(); }

  void SetServing(bool serving);
  // Ends the watches, UNAVAILABLE SHUTTING_DOWN, those that come later too.
  void Shutdown();

  // ---- For the calls ----
  enum class Status { kServing, kNotServing, kUnknownService };
  Status StatusOf(const std::string& service) const;
  bool shut_down() const { return shut_down_.load(); }
  // It tells what there is, and each change from then on.
  void Add(const std::shared_ptr<HealthWatch>& watch);
  void Remove(HealthWatch* watch);

 private:
  std::vector<std::shared_ptr<HealthWatch>> Watches();

  const std::set<std::string> services_;
  std::unique_ptr<grpc::Service> service_;
  std::atomic<bool> serving_ = false;
  std::atomic<bool> shut_down_ = false;
  std::mutex mutex_;  // guards what follows
  std::map<HealthWatch*, std::shared_ptr<HealthWatch>> watches_;
};

}  // namespace longhaul::server
