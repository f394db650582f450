#include "server/call_limits.h"

#include <cctype>

#include "base/error.h"

namespace longhaul::server {
namespace {

// A fleet may share a token: each of its hosts has limits of its own.
std::string KeyOf(const Caller& caller) { return caller.name + "@" + caller.host; }

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

absl::StatusOr<CallLimits::Slot> CallLimits::Take(const Caller& caller, const char* what, int most) {
  if (caller.local) return Slot();
  const std::string key = std::string(what) + " " + KeyOf(caller);
  {
    std::lock_guard lock(mutex_);
    int& held = held_[key];
    if (held >= most) {
      std::string reason = "TOO_MANY_";
      for (const char* c = what; *c != '\0'; ++c) reason += static_cast<char>(std::toupper(*c));
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
