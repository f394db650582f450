#include "worker/agent/grpc_client.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "longhaul/v1/blob_service.grpc.pb.h"
#include "longhaul/v1/worker_service.grpc.pb.h"
#include "wire/metadata.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kUnaryDeadlineMs = 30'000;
// No whole-stream deadline suits every size, so a stream may take an hour; between chunks it looks at its cancel flag,
// and it ends with a connection that is dead.
constexpr int64_t kStreamDeadlineMs = 3'600'000;
// A scheduler that comes back should be found at once; our own backoff spreads the fleet.
constexpr int kMaxReconnectMs = 2'000;
static_assert(PingTimes().silent_ms >= limits::kMinClientPingMs, "the scheduler would end the connection for it");

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  std::string reason;
  std::vector<FieldViolation> violations;
  google::rpc::ErrorInfo info;
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      google::rpc::BadRequest bad;
      if (any.UnpackTo(&info)) reason = info.reason();
      if (!any.UnpackTo(&bad)) continue;
      for (const auto& v : bad.field_violations()) violations.push_back({v.field(), v.description()});
    }
  }
  if (reason.empty() && status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    const channel::NoConnection why = channel::ExplainNoConnection("--scheduler HOST:PORT", status.error_message());
    return WithAdvice(absl::UnavailableError(why.what), why.advice);
  }
  absl::Status error = MakeError(static_cast<absl::StatusCode>(status.error_code()), reason, status.error_message(),
                                 std::move(violations));
  for (const auto& [key, value] : info.metadata()) error = WithMetadata(error, key, value);
  return error;
}

// One connection and what is called on it.
struct Stubs {
  explicit Stubs(const std::shared_ptr<grpc::Channel>& channel)
      : worker(v1::WorkerService::NewStub(channel)), blobs(v1::BlobService::NewStub(channel)) {}
  std::unique_ptr<v1::WorkerService::Stub> worker;
  std::unique_ptr<v1::BlobService::Stub> blobs;
};

absl::StatusOr<std::shared_ptr<Stubs>> Connect(const channel::ChannelOptions& options, const PingTimes& pings) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxGrpcMessageBytes));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(pings.silent_ms));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(pings.answer_ms));
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // otherwise the third is never sent
  LH_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, channel::OpenChannel(options, arguments));
  return std::make_shared<Stubs>(channel);
}

void SetDeadline(grpc::ClientContext* context, int64_t ms) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(ms));
}

absl::Status Cancelled() {
  return MakeError(absl::StatusCode::kCancelled, "TRANSFER_CANCELLED", "the transfer was cancelled");
}

}  // namespace

struct GrpcSchedulerClient::Impl {
  Impl(const channel::ChannelOptions& o, const PingTimes& p) : options(o), pings(p) {}

  // On the connection of now. Files that cannot be used (half of a renewal is there) leave the one before; a call in
  // flight goes on with its own. Not within a callback, for it ends what is not used any more.
  std::shared_ptr<Stubs> Now() {
    const std::string digest = channel::TlsFilesDigest(options);
    std::vector<std::shared_ptr<Stubs>> unused;  // ended without the lock, which a callback may be waiting for
    const std::lock_guard<std::mutex> lock(mutex);
    const auto first = std::partition(retired.begin(), retired.end(), [](const auto& s) { return s.use_count() > 1; });
    unused.assign(std::make_move_iterator(first), std::make_move_iterator(retired.end()));
    retired.erase(first, retired.end());
    if (digest.empty() || digest == tls_digest) return stubs;
    tls_digest = digest;
    if (absl::StatusOr<std::shared_ptr<Stubs>> fresh = Connect(options, pings); fresh.ok()) {
      retired.push_back(std::exchange(stubs, *std::move(fresh)));
    }
    return stubs;
  }

  // Shown with every call from now on. What metadata cannot have is left out: gRPC would end the process.
  void Show(const std::string& session) {
    const bool printable = std::all_of(session.begin(), session.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    const std::lock_guard<std::mutex> lock(mutex);
    session_id = printable ? session : "";
  }

  // A call on the connection of now, that Shutdown can reach for as long as it runs. It lets go of the connection
  // before it says that it is over: so a callback never has the last reference to one. The end of a connection ends
  // gRPC's callback threads where no other uses them, and within such a thread that is a use after free.
  class Live {
   public:
    explicit Live(Impl* impl, int64_t deadline_ms) : impl_(impl), stubs_(impl->Now()), context_(std::in_place) {
      SetDeadline(context(), deadline_ms);
      const std::lock_guard<std::mutex> lock(impl->mutex);
      if (!impl->session_id.empty()) context()->AddMetadata(kSessionMetadata, impl->session_id);
      ++impl->calls;
      impl->contexts.insert(context());
      if (impl->shut_down) context()->TryCancel();
    }
    ~Live() {
      {
        const std::lock_guard<std::mutex> lock(impl_->mutex);
        impl_->contexts.erase(context());
      }
      context_.reset();  // has a reference, too
      stubs_.reset();
      const std::lock_guard<std::mutex> lock(impl_->mutex);
      --impl_->calls;
      impl_->idle.notify_all();
    }
    Live(const Live&) = delete;
    Live& operator=(const Live&) = delete;
    grpc::ClientContext* context() { return &*context_; }
    v1::WorkerService::Stub* worker() { return stubs_->worker.get(); }
    v1::BlobService::Stub* blobs() { return stubs_->blobs.get(); }

   private:
    Impl* impl_;
    std::shared_ptr<Stubs> stubs_;
    std::optional<grpc::ClientContext> context_;
  };

  const channel::ChannelOptions options;
  const PingTimes pings;
  std::mutex mutex;  // guards all below
  std::condition_variable idle;
  std::shared_ptr<Stubs> stubs;
  std::vector<std::shared_ptr<Stubs>> retired;  // earlier connections that calls are still on
  std::string tls_digest;                       // of the files that `stubs` was made from, or that were no good
  std::string session_id;                       // "" = none yet
  int calls = 0;                                // that run
  std::set<grpc::ClientContext*> contexts;      // theirs
  bool shut_down = false;
};

absl::StatusOr<std::unique_ptr<GrpcSchedulerClient>> GrpcSchedulerClient::Open(const channel::ChannelOptions& options,
                                                                               const PingTimes& pings) {
  auto impl = std::make_unique<Impl>(options, pings);
  impl->tls_digest = channel::TlsFilesDigest(options);
  LH_ASSIGN_OR_RETURN(impl->stubs, Connect(options, pings));
  return std::unique_ptr<GrpcSchedulerClient>(new GrpcSchedulerClient(std::move(impl)));
}

GrpcSchedulerClient::GrpcSchedulerClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GrpcSchedulerClient::~GrpcSchedulerClient() { Shutdown(); }

void GrpcSchedulerClient::Shutdown() {
  std::unique_lock<std::mutex> lock(impl_->mutex);
  impl_->shut_down = true;
  for (grpc::ClientContext* context : impl_->contexts) context->TryCancel();
  impl_->idle.wait(lock, [this] { return impl_->calls == 0; });
}

namespace {

// What an asynchronous call needs until its answer; deletes itself with it.
template <typename Live, typename Request, typename Response>
struct AsyncCall {
  template <typename Impl>
  AsyncCall(Impl* impl, int64_t deadline_ms, const Request& r, std::function<void(absl::StatusOr<Response>)> d)
      : live(impl, deadline_ms), request(r), done(std::move(d)) {}
  void Finish(const grpc::Status& status) {
    if (status.ok()) {
      done(std::move(response));
    } else {
      done(FromGrpc(status));
    }
    delete this;
  }
  Live live;  // first, so that it goes last: the client may be gone once it is
  Request request;
  Response response;
  std::function<void(absl::StatusOr<Response>)> done;
};

}  // namespace

void GrpcSchedulerClient::OpenSession(const v1::OpenSessionRequest& request,
                                      std::function<void(absl::StatusOr<v1::OpenSessionResponse>)> done) {
  // The call lives until this has returned, and the client until its calls are gone.
  auto show = [impl = impl_.get(), done = std::move(done)](absl::StatusOr<v1::OpenSessionResponse> answer) {
    if (answer.ok()) impl->Show(answer->session_id());
    done(std::move(answer));
  };
  auto* call = new AsyncCall<Impl::Live, v1::OpenSessionRequest, v1::OpenSessionResponse>(impl_.get(), kUnaryDeadlineMs,
                                                                                          request, std::move(show));
  call->live.worker()->async()->OpenSession(call->live.context(), &call->request, &call->response,
                                            [call](grpc::Status status) { call->Finish(status); });
}

void GrpcSchedulerClient::Sync(const v1::SyncRequest& request, int64_t deadline_ms,
                               std::function<void(absl::StatusOr<v1::SyncResponse>)> done) {
  auto* call =
      new AsyncCall<Impl::Live, v1::SyncRequest, v1::SyncResponse>(impl_.get(), deadline_ms, request, std::move(done));
  call->live.worker()->async()->Sync(call->live.context(), &call->request, &call->response,
                                     [call](grpc::Status status) { call->Finish(status); });
}

absl::Status GrpcSchedulerClient::CommitCheckpoint(const v1::CommitCheckpointRequest& request) {
  Impl::Live live(impl_.get(), kUnaryDeadlineMs);
  v1::CommitResponse response;
  return FromGrpc(live.worker()->CommitCheckpoint(live.context(), request, &response));
}

absl::Status GrpcSchedulerClient::CommitArtifact(const v1::CommitArtifactRequest& request) {
  Impl::Live live(impl_.get(), kUnaryDeadlineMs);
  v1::CommitResponse response;
  return FromGrpc(live.worker()->CommitArtifact(live.context(), request, &response));
}

absl::StatusOr<int64_t> GrpcSchedulerClient::AppendLog(const v1::AppendLogRequest& request) {
  Impl::Live live(impl_.get(), kUnaryDeadlineMs);
  v1::AppendLogResponse response;
  LH_RETURN_IF_ERROR(FromGrpc(live.worker()->AppendLog(live.context(), request, &response)));
  return response.committed_bytes();
}

absl::StatusOr<std::vector<v1::BlobName>> GrpcSchedulerClient::FindMissing(const std::vector<v1::BlobName>& blobs) {
  Impl::Live live(impl_.get(), kUnaryDeadlineMs);
  v1::FindMissingRequest request;
  for (const v1::BlobName& blob : blobs) *request.add_blobs() = blob;
  v1::FindMissingResponse response;
  LH_RETURN_IF_ERROR(FromGrpc(live.blobs()->FindMissing(live.context(), request, &response)));
  return std::vector<v1::BlobName>(response.missing().begin(), response.missing().end());
}

absl::Status GrpcSchedulerClient::WriteBlob(const v1::BlobName& blob, const std::string& path,
                                            const CancelFlag& cancelled) {
  for (bool again = false;; again = true) {
    v1::QueryWriteStatusResponse there;
    {
      Impl::Live live(impl_.get(), kUnaryDeadlineMs);
      v1::QueryWriteStatusRequest request;
      *request.mutable_blob() = blob;
      LH_RETURN_IF_ERROR(FromGrpc(live.blobs()->QueryWriteStatus(live.context(), request, &there)));
    }
    if (there.complete()) return absl::OkStatus();
    const absl::Status sent = SendBlob(blob, path, there.committed_bytes(), cancelled);
    // What an earlier upload left there may be damaged; the scheduler has dropped it by now. Once from the start, then
    // the file is not what its name says.
    if (ErrorReason(sent) != "BLOB_HASH_MISMATCH" || there.committed_bytes() == 0 || again) return sent;
  }
}

absl::Status GrpcSchedulerClient::SendBlob(const v1::BlobName& blob, const std::string& path, int64_t offset,
                                           const CancelFlag& cancelled) {
  Impl::Live live(impl_.get(), kStreamDeadlineMs);
  v1::WriteBlobResponse response;
  const auto writer = live.blobs()->Write(live.context(), &response);
  v1::WriteBlobRequest message;
  *message.mutable_blob() = blob;
  absl::Status local;
  while (true) {
    auto bytes = ReadFileRange(path, offset, std::min(limits::kBlobChunkBytes, blob.size_bytes() - offset));
    if (absl::Status armed = Failpoint("agent_before_chunk"); !armed.ok()) bytes = armed;
    if (cancelled->load()) bytes = Cancelled();
    if (bytes.ok() && bytes->empty() && offset < blob.size_bytes()) {
      bytes = MakeError(absl::StatusCode::kDataLoss, "FILE_TRUNCATED", path + " has become shorter than it was");
    }
    if (!bytes.ok()) {
      local = bytes.status();
      live.context()->TryCancel();
      break;
    }
    message.set_offset(offset);
    offset += static_cast<int64_t>(bytes->size());
    message.set_data(*std::move(bytes));
    message.set_finish(offset >= blob.size_bytes());
    if (!writer->Write(message) || message.finish()) break;
    message.clear_blob();
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!local.ok()) return local;
  LH_RETURN_IF_ERROR(FromGrpc(status));
  if (response.committed_bytes() == blob.size_bytes()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "UPLOAD_SHORT", "the upload of " + path + " ended early");
}

absl::Status GrpcSchedulerClient::ReadBlob(const v1::BlobName& blob, int64_t offset,
                                           const std::function<absl::Status(std::string_view)>& sink,
                                           const CancelFlag& cancelled) {
  Impl::Live live(impl_.get(), kStreamDeadlineMs);
  v1::ReadBlobRequest request;
  *request.mutable_blob() = blob;
  request.set_offset(offset);
  const auto reader = live.blobs()->Read(live.context(), request);
  v1::ReadBlobResponse response;
  absl::Status local;
  while (local.ok() && reader->Read(&response)) local = cancelled->load() ? Cancelled() : sink(response.data());
  if (!local.ok()) live.context()->TryCancel();
  while (reader->Read(&response)) {
  }
  const grpc::Status status = reader->Finish();
  return local.ok() ? FromGrpc(status) : local;
}

}  // namespace longhaul::agent
