// The base of our server streams: one message in flight, nothing blocks, and a stream that waits costs no thread.
//
// A subclass keeps its state under mutex_ and implements Next(), which under the lock says what to do now. Whenever its
// state changed it calls Pump() without the lock. Pump starts at most one write, and Finish once.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "grpcpp/support/server_callback.h"
#include "server/rpc/gate.h"
#include "server/rpc/transfer_watch.h"

namespace longhaul::server {

// Who opened a stream, with its place among the caller's streams.
struct StreamCaller {
  Caller caller;
  CallLimits::Slot slot;
  CallLimits::Slot log_slot;                                    // a log's reader's, too
  std::unique_ptr<TransferWatch::Transfer> transfer = nullptr;  // null = may stand still
};

// As Gate::Admit; and RESOURCE_EXHAUSTED TOO_MANY_STREAMS.
inline absl::StatusOr<StreamCaller> AdmitStream(const Gate& gate, const grpc::ServerContextBase& call, Method method) {
  LH_ASSIGN_OR_RETURN(Caller caller, gate.Admit(call, method));
  LH_ASSIGN_OR_RETURN(CallLimits::Slot slot, gate.limits()->TakeStream(caller, HostAndPortOfPeer(call.peer())));
  return StreamCaller{std::move(caller), std::move(slot), nullptr, nullptr};
}

template <typename Response>
class StreamReactor : public grpc::ServerWriteReactor<Response>,
                      public std::enable_shared_from_this<StreamReactor<Response>> {
 public:
  StreamReactor(const Gate* gate, Method method, StreamCaller caller)
      : gate_(gate),
        caller_(std::move(caller.caller)),
        method_(method),
        slot_(std::move(caller.slot)),
        log_slot_(std::move(caller.log_slot)),
        transfer_(std::move(caller.transfer)) {
    if (transfer_ != nullptr) transfer_->Rest();
  }

  // The stream lives until gRPC is done with it and nobody else holds it.
  void Live() { self_ = this->shared_from_this(); }

  // Ends the stream: after the message in flight, before anything else. The first call counts.
  void End(const absl::Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (!end_.has_value()) end_ = status;
    }
    Pump();
  }

  void Pump() {
    bool finish = false;
    {
      std::lock_guard lock(mutex_);
      if (writing_ || finished_) return;
      if (!end_.has_value()) {
        response_.Clear();
        writing_ = Next(&response_);  // may set end_
      }
      if (!writing_) finish = finished_ = end_.has_value();
      if (!writing_ && !finish) return;
      if (writing_ && transfer_ != nullptr) transfer_->Moved();
    }
    if (finish) {
      this->Finish(gate_->End(method_, *end_));
    } else {
      this->StartWrite(&response_);
    }
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (transfer_ != nullptr) transfer_->Rest();
      if (!ok && !end_.has_value()) end_ = absl::CancelledError("the client went away");
    }
    Pump();
  }
  void OnCancel() override { End(absl::CancelledError("the client went away")); }
  void OnDone() override {
    std::unique_ptr<TransferWatch::Transfer> transfer;
    {
      std::lock_guard lock(mutex_);
      transfer = std::move(transfer_);
    }
    transfer.reset();  // whoever still holds the stream holds no call of gRPC's
    Detach();
    self_.reset();
  }

 protected:
  // Under mutex_, with no message in flight. Fills in `response` and returns true, or returns false: nothing to say
  // now. Sets end_ to end the stream.
  virtual bool Next(Response* response) = 0;
  // The stream has ended: let go of whatever holds it.
  virtual void Detach() = 0;

  // At each heartbeat: a token that was revoked ends the streams that it opened, too.
  bool EndedByRecheck() {
    const absl::Status status = gate_->Recheck(caller_);
    if (!status.ok()) End(status);
    return !status.ok();
  }

  const Gate* const gate_;
  const Caller caller_;
  std::mutex mutex_;                 // guards all that follows, and the subclass's state
  std::optional<absl::Status> end_;  // how the stream ends; constant once finished_

 private:
  const Method method_;
  const CallLimits::Slot slot_;
  const CallLimits::Slot log_slot_;
  std::unique_ptr<TransferWatch::Transfer> transfer_;  // runs while writing_
  bool writing_ = false;
  bool finished_ = false;
  Response response_;  // in flight while writing_
  std::shared_ptr<StreamReactor> self_;
};

// A stream that ends at once.
template <typename Response>
class EndedStream final : public grpc::ServerWriteReactor<Response> {
 public:
  explicit EndedStream(const grpc::Status& status) { this->Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace longhaul::server
