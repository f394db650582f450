#include "server/call_limits.h"

#include <cctype>

#include "base/error.h"
#include "base/net_address.h"
#include "base/status_macros.h"

namespace longhaul::server {
namespace {

// A fleet may share a token: each of its hosts has limits of its own.
std::string KeyOf(const Caller& caller) { return caller.name + "@" + HostGroup(caller.host); }

}  // namespace

absl::Status CallLimits::TakeCall(const Caller& caller) {
  if (caller.local) return absl::OkStatus();
  const int64_t wait_nanos = calls_.Take(KeyOf(caller), clock_->BootNanos());
  if (wait_nanos == 0) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "RATE_LIMITED",
                   caller.name + " makes more than " + std::to_string(options_.calls_per_second) +
                       " calls a second from " + caller.host + ": try again in " +
                       std::to_string(wait_nanos / 1'000'000 + 1) + " ms");
}

bool CallLimits::TakeRefusedRow(const Caller& caller) {
  return caller.local || refused_rows_.Take(KeyOf(caller), clock_->BootNanos()) == 0;
}

absl::StatusOr<CallLimits::Slot> CallLimits::TakeLogStream(const Caller& caller) {
  LH_ASSIGN_OR_RETURN(Slot of_caller, Take(caller, "log stream", options_.log_streams));
  // The place among all of them holds the caller's.
  Slot place(this, [this, of_caller = std::move(of_caller)](const void*) { --log_streams_; });
  if (++log_streams_ <= options_.log_streams_of_all) return place;
  return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_LOG_STREAMS",
                   "all " + std::to_string(options_.log_streams_of_all) + " readers of logs are in use; try again");
}

absl::StatusOr<CallLimits::Slot> CallLimits::Take(const Caller& caller, const char* what, int most) {
  if (caller.local) return Slot();
  const std::string key = std::string(what) + " " + KeyOf(caller);
  {
    std::lock_guard lock(mutex_);
    int& held = held_[key];
    if (held >= most) {
      std::string reason = "TOO_MANY_";
      for (const char* c = what; *c != '\0'; ++c) reason += *c == ' ' ? '_' : static_cast<char>(std::toupper(*c));
      return MakeError(absl::StatusCode::kResourceExhausted, reason + "S",
                       caller.name + " has " + std::to_string(held) + " " + what + "s open from " + caller.host +
                           ", the most that it may have");
    }
    ++held;
  }
  return Slot(this, [this, key](const void*) {
    std::lock_guard lock(mutex_);
    const auto found = held_.find(key);
    if (--found->second == 0) held_.erase(found);
  });
}

}  // namespace longhaul::server
