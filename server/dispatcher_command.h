// DispatcherCore::Command, for the files that define its commands.
#pragma once

#include <utility>

#include "server/dispatcher_core.h"

namespace longhaul::server {

inline absl::Status StatusOf(const absl::Status& status) { return status; }
template <class T>
absl::Status StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// Runs `body` as one command: kept where it answers OK, else undone in memory and in the store.
template <class F>
auto DispatcherCore::Command(F body) -> decltype(body()) {
  BeginCommand();
  auto result = body();
  EndCommand(StatusOf(result).ok());
  return result;
}

}  // namespace longhaul::server
