#include "server/call_limits.h"

#include <utility>

#include "base/error.h"
#include "base/net_address.h"

namespace longhaul::server {
namespace {

// A line break is in none of the parts.
std::string HostKeyOf(const Caller& caller) { return caller.name + "\n" + HostGroup(caller.host); }

std::string KeyOf(const Caller& caller) {
  const std::string& worker = caller.worker_id.empty() ? caller.session : caller.worker_id;
  return HostKeyOf(caller) + "\n" + worker;
}

// It has opened its session itself, and may open another: what it gets by that has a bound.
bool SharesItsName(const Caller& caller) { return caller.worker_id.empty() && !caller.session.empty(); }

}  // namespace

absl::Status CallLimits::TakeCall(const Caller& caller) {
  if (caller.local) return absl::OkStatus();
  const int64_t now = clock_->BootNanos();
  int64_t most = options_.calls_per_second;
  int64_t wait_nanos = calls_.Take(KeyOf(caller), now);
  if (wait_nanos == 0 && SharesItsName(caller)) {
    most *= limits::kMaxSharersCallTimes;
    wait_nanos = sharers_calls_.Take(HostKeyOf(caller), now);
  }
  if (wait_nanos == 0) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "RATE_LIMITED",
                   caller.name + " makes more than " + std::to_string(most) + " calls a second from " + caller.host +
                       ": try again in " + std::to_string(wait_nanos / 1'000'000 + 1) + " ms");
}

bool CallLimits::TakeRefusedRow(const Caller& caller) {
  return caller.local || refused_rows_.Take(HostKeyOf(caller), clock_->BootNanos()) == 0;
}

absl::StatusOr<CallLimits::Slot> CallLimits::TakeStream(const Caller& caller, const std::string& connection) {
  if (caller.local) {
    return Take(
        {{"streams of connection\n" + connection, options_.streams,
          "this connection has " + std::to_string(options_.streams) + " streams open, the most that one may have"}},
        "TOO_MANY_STREAMS");
  }
  return Take({OfCaller(caller, "streams", options_.streams), OfName(caller, "streams", options_.streams_of_name)},
              "TOO_MANY_STREAMS");
}

absl::StatusOr<CallLimits::Slot> CallLimits::TakeLogStream(const Caller& caller) {
  if (caller.local) return Slot();
  return Take({OfCaller(caller, "readers of logs", options_.log_streams),
               OfName(caller, "readers of logs", options_.log_streams_of_name),
               {"logs", options_.log_streams_of_all,
                "all " + std::to_string(options_.log_streams_of_all) + " readers of logs are in use; try again"}},
              "TOO_MANY_LOG_STREAMS");
}

absl::StatusOr<CallLimits::Slot> CallLimits::TakeTransfer(const Caller& caller) {
  if (caller.local) return Slot();
  const bool works = caller.Has(Scope::kWorker);
  std::vector<Bound> bounds = {
      OfCaller(caller, "transfers", options_.transfers),
      OfName(caller, "transfers", works ? options_.worker_transfers_of_name : options_.transfers_of_name)};
  if (!works) {
    bounds.push_back({"transfers of clients", options_.transfers_of_clients,
                      "all " + std::to_string(options_.transfers_of_clients) +
                          " transfers that are not kept for workers are in use; try again"});
  }
  if (SharesItsName(caller)) {
    bounds.push_back({"transfers of sharers\n" + HostKeyOf(caller), options_.transfers_of_sharers,
                      "the workers of " + caller.name + " have " + std::to_string(options_.transfers_of_sharers) +
                          " transfers open from " + caller.host + ", the most that they may have"});
  }
  return Take(std::move(bounds), "TOO_MANY_TRANSFERS");
}

CallLimits::Bound CallLimits::OfCaller(const Caller& caller, const std::string& what, int most) {
  return {what + "\n" + KeyOf(caller), most,
          caller.name + " has " + std::to_string(most) + " " + what + " open from " + caller.host +
              ", the most that it may have"};
}

CallLimits::Bound CallLimits::OfName(const Caller& caller, const std::string& what, int most) {
  return {
      what + " of\n" + caller.name, most,
      caller.name + " has " + std::to_string(most) + " " + what + " on all of its hosts, the most that it may have"};
}

absl::StatusOr<CallLimits::Slot> CallLimits::Take(std::vector<Bound> bounds, const char* reason) {
  {
    std::lock_guard lock(mutex_);
    for (const Bound& bound : bounds) {
      const auto found = held_.find(bound.key);
      if ((found == held_.end() ? 0 : found->second) < bound.most) continue;
      return MakeError(absl::StatusCode::kResourceExhausted, reason, bound.refusal);
    }
    for (const Bound& bound : bounds) ++held_[bound.key];
  }
  std::vector<std::string> keys;
  for (Bound& bound : bounds) keys.push_back(std::move(bound.key));
  return Slot(this, [this, keys = std::move(keys)](const void*) {
    std::lock_guard lock(mutex_);
    for (const std::string& key : keys) {
      const auto found = held_.find(key);
      if (--found->second == 0) held_.erase(found);
    }
  });
}

}  // namespace longhaul::server
