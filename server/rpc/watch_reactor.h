// WatchFineTuneJob: of a job that the caller may see (others are NOT_FOUND), Snapshot first, then every event after the
// cursor in order, progress in between, a heartbeat when it is time; ends OK after the terminal event and NOT_FOUND
// when the job is deleted. A reader that is too slow for limits::kMaxPendingWatchEvents reads the rest from the store;
// of progress it gets the latest only.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "grpcpp/support/server_callback.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "server/core/store.h"
#include "server/rpc/event_hub.h"
#include "server/rpc/gate.h"
#include "server/rpc/stream_reactor.h"

namespace longhaul::server {

struct WatchContext {
  const Gate* gate = nullptr;
  EventHub* hub = nullptr;
  Store* store = nullptr;
  std::function<v1::Job(const Job&)> show;  // a job as Get shows it; may block
};

// Starts the stream and gives it to gRPC. `context` must outlive the server.
grpc::ServerWriteReactor<v1::WatchFineTuneJobResponse>* StartWatch(const WatchContext* context, StreamCaller caller,
                                                                   std::string job_id,
                                                                   std::optional<int64_t> after_sequence);

}  // namespace longhaul::server
