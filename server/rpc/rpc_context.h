// What the services share. Owned by the composition root, which keeps all of it alive until the gRPC server has
// stopped.
#pragma once

#include "server/core/store.h"
#include "server/dispatcher.h"
#include "server/rpc/event_hub.h"
#include "server/rpc/gate.h"
#include "server/rpc/plan_memo.h"
#include "server/rpc/transfer_watch.h"
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
  TransferWatch* transfers = nullptr;
};

}  // namespace longhaul::server
