// ReadLogs: what an attempt printed, from an offset on, in chunks; with `follow` until the log is complete.
#pragma once

#include "grpcpp/support/server_callback.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "server/core/store.h"
#include "server/rpc/event_hub.h"
#include "server/rpc/gate.h"
#include "server/rpc/stream_reactor.h"
#include "storage/log_store.h"

namespace longhaul::server {

struct LogContext {
  const Gate* gate = nullptr;
  EventHub* hub = nullptr;
  Store* store = nullptr;
  storage::LogStore* logs = nullptr;
};

// As StartWatch.
grpc::ServerWriteReactor<v1::ReadLogsResponse>* StartLogStream(const LogContext* context, StreamCaller caller,
                                                               const v1::ReadLogsRequest& request);

}  // namespace longhaul::server
