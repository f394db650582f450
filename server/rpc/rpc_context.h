// What the services share. Owned by the composition root, which keeps all of it alive until the gRPC server has
// stopped.
#pragma once

#include "base/limits.h"
#include "server/core/store.h"
#include "server/dispatcher.h"
#include "server/rpc/event_hub.h"
#include "server/rpc/gate.h"
#include "server/rpc/plan_memo.h"
#include "storage/blob_store.h"
#include "storage/log_store.h"

namespace longhaul::server {

struct RpcContext {
  Gate gate;
  Dispatcher* dispatcher = nullptr;
  Store* store = nullptr;
  storage::BlobStore* blobs = nullptr;
  storage::LogStore* logs = nullptr;
  EventHub* hub = nullptr;
  PlanMemo* plans = nullptr;
  int64_t transfer_stall_ms = limits::kTransferStallMs;
};

}  // namespace longhaul::server
