#include "server/rpc/blob_service.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "longhaul/v1/blob_service.grpc.pb.h"
#include "server/rpc/transfer_watch.h"
#include "server/rpc/visibility.h"

namespace longhaul::server {
namespace {

using storage::BlobStore;

absl::StatusOr<BlobRef> RefOf(const v1::BlobName& name, const std::string& field) {
  if (!IsSha256Hex(name.sha256())) return InvalidField(field + ".sha256", "must be 64 lower-case hex digits");
  if (name.size_bytes() < 0 || name.size_bytes() > limits::kMaxBlobBytes) {
    return InvalidField(field + ".size_bytes", "is " + std::to_string(name.size_bytes()) + "; must be 0 to " +
                                                   std::to_string(limits::kMaxBlobBytes));
  }
  return BlobRef{name.sha256(), name.size_bytes()};
}

// A stream holds a thread while it runs: so many at once and no more.
class TransferSlot {
 public:
  explicit TransferSlot(std::atomic<int>* used) : used_(used), taken_(used->fetch_add(1) < limits::kMaxTransfers) {}
  ~TransferSlot() { used_->fetch_sub(1); }
  TransferSlot(const TransferSlot&) = delete;
  TransferSlot& operator=(const TransferSlot&) = delete;
  absl::Status status() const {
    if (taken_) return absl::OkStatus();
    return MakeError(absl::StatusCode::kUnavailable, "TOO_MANY_TRANSFERS",
                     "all " + std::to_string(limits::kMaxTransfers) + " transfers are in use; try again");
  }

 private:
  std::atomic<int>* used_;
  bool taken_;
};

class BlobService final : public v1::BlobService::Service {
 public:
  explicit BlobService(const RpcContext* context) : context_(*context) {}

  grpc::Status FindMissing(grpc::ServerContext* call, const v1::FindMissingRequest* request,
                           v1::FindMissingResponse* response) override {
    return context_.gate.Unary(*call, "BlobService/FindMissing", [&](const Caller& caller) {
      if (request->blobs_size() > limits::kMaxBlobsPerFindMissing) {
        return InvalidField("blobs", "has " + std::to_string(request->blobs_size()) + " elements; at most " +
                                         std::to_string(limits::kMaxBlobsPerFindMissing));
      }
      std::vector<BlobRef> stale;
      for (int i = 0; i < request->blobs_size(); ++i) {
        LH_ASSIGN_OR_RETURN(BlobRef blob, RefOf(request->blobs(i), "blobs[" + std::to_string(i) + "]"));
        LH_ASSIGN_OR_RETURN(const bool there, Visible(caller, blob));
        if (there) {
          LH_ASSIGN_OR_RETURN(const bool fresh, Fresh(blob));
          if (!fresh) stale.push_back(std::move(blob));
        } else {
          *response->add_missing() = request->blobs(i);
        }
      }
      return stale.empty() ? absl::OkStatus() : context_.dispatcher->RecordBlobs(std::move(stale));
    });
  }

  grpc::Status QueryWriteStatus(grpc::ServerContext* call, const v1::QueryWriteStatusRequest* request,
                                v1::QueryWriteStatusResponse* response) override {
    return context_.gate.Unary(*call, "BlobService/QueryWriteStatus", [&](const Caller& caller) {
      LH_ASSIGN_OR_RETURN(const BlobRef blob, RefOf(request->blob(), "blob"));
      absl::StatusOr<BlobStore::WriteStatus> status = context_.blobs->QueryWriteStatus(blob, SpaceOf(caller));
      if (!status.ok()) return status.status();
      LH_ASSIGN_OR_RETURN(const bool hidden, Hidden(caller, blob));
      if (hidden) return absl::OkStatus();  // nothing is there, as far as the caller goes
      response->set_committed_bytes(status->committed_bytes);
      response->set_complete(status->complete);
      return absl::OkStatus();
    });
  }

  grpc::Status Write(grpc::ServerContext* call, grpc::ServerReader<v1::WriteBlobRequest>* reader,
                     v1::WriteBlobResponse* response) override {
    constexpr Method kMethod("BlobService/Write");
    Audit audit;
    const absl::StatusOr<Caller> caller = context_.gate.Admit(*call, kMethod, &audit);
    absl::Status status = caller.status();
    if (status.ok()) status = Receive(*caller, call, reader, response, &audit);
    // What a worker stores is some files every few seconds, and gives nobody a right: what refers to it is audited.
    if (status.ok() && !caller->Has(Scope::kSubmitter)) audit.skip = true;
    context_.gate.Record(status, &audit);
    return context_.gate.End(kMethod, status);
  }

  grpc::Status Read(grpc::ServerContext* call, const v1::ReadBlobRequest* request,
                    grpc::ServerWriter<v1::ReadBlobResponse>* writer) override {
    constexpr Method kMethod("BlobService/Read");
    const absl::StatusOr<Caller> caller = context_.gate.Admit(*call, kMethod);
    absl::Status status = caller.status();
    if (status.ok()) status = Send(*caller, call, *request, writer);
    return context_.gate.End(kMethod, status);
  }

 private:
  // Nothing refers to it and its grace was renewed within the hour: asking all the time costs the dispatcher little. Of
  // what is referred to it is told how long it stays when the reference ends: by whether it was asked for since.
  absl::StatusOr<bool> Fresh(const BlobRef& blob) {
    constexpr int64_t kRenewMicros = limits::kBlobGraceHours * 3'600'000'000 / 24;
    LH_ASSIGN_OR_RETURN(const std::optional<int64_t> grace, context_.store->IdleBlobGraceMicros(blob));
    return grace.has_value() && *grace > context_.gate.clock()->WallMicros() - kRenewMicros;
  }
  absl::StatusOr<bool> Visible(const Caller& caller, const BlobRef& blob) {
    LH_ASSIGN_OR_RETURN(const bool present, context_.blobs->Present(blob));
    if (!present) return false;
    return MaySeeBlob(*context_.store, caller, blob);
  }
  // There, but not for the caller.
  absl::StatusOr<bool> Hidden(const Caller& caller, const BlobRef& blob) {
    LH_ASSIGN_OR_RETURN(const bool present, context_.blobs->Present(blob));
    if (!present) return false;
    LH_ASSIGN_OR_RETURN(const bool visible, MaySeeBlob(*context_.store, caller, blob));
    return !visible;
  }

  // Of every project, as the workers are: they share their unfinished uploads, which have no bound but the disk's.
  static bool ServesAll(const Caller& caller) { return caller.all_projects && caller.Has(Scope::kWorker); }

  // Projects do not continue each other's unfinished uploads: the one would show the bytes of the other.
  static std::string SpaceOf(const Caller& caller) {
    if (ServesAll(caller)) return "";
    return Sha256Hex(caller.all_projects ? std::string(kAllProjects) : caller.project).substr(0, 16);
  }

  // What the caller may have of unfinished uploads, the one of `blob` among them.
  absl::StatusOr<storage::PartialBounds> CheckQuota(const Caller& caller, const BlobRef& blob) {
    storage::PartialBounds bounds;
    if (ServesAll(caller)) return bounds;
    bounds.files = limits::kMaxUnfinishedUploads;
    if (caller.all_projects) return bounds;
    LH_ASSIGN_OR_RETURN(const Store::Uploads uploaded, context_.store->Uploaded(caller.project));
    const auto too_many = [&](const std::string& what, int64_t there, int64_t most) {
      return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_UPLOADS",
                       "project " + caller.project + " has " + std::to_string(there) + " " + what +
                           " of uploads; with this one it would pass its " + std::to_string(most) +
                           ": delete jobs, then try again in a day");
    };
    if (uploaded.blobs >= limits::kMaxProjectBlobs) return too_many("blobs", uploaded.blobs, limits::kMaxProjectBlobs);
    bounds.bytes = limits::kMaxProjectUploadBytes - uploaded.bytes;
    if (bounds.bytes >= blob.size_bytes) return bounds;
    return too_many("bytes", uploaded.bytes, limits::kMaxProjectUploadBytes);
  }

  absl::Status Receive(const Caller& caller, grpc::ServerContext* call,
                       grpc::ServerReader<v1::WriteBlobRequest>* reader, v1::WriteBlobResponse* response,
                       Audit* audit) {
    LH_ASSIGN_OR_RETURN(const CallLimits::Slot caller_slot, context_.gate.limits()->TakeTransfer(caller));
    const TransferSlot slot(&transfers_);
    LH_RETURN_IF_ERROR(slot.status());
    TransferWatch::Transfer transfer(context_.transfers, call);
    v1::WriteBlobRequest message;
    if (!reader->Read(&message)) return InvalidField("blob", "is absent; the first message must name the blob");
    audit->record.target = message.blob().sha256();
    LH_ASSIGN_OR_RETURN(const BlobRef blob, RefOf(message.blob(), "blob"));
    BlobStore::UploadOptions options;
    options.space = SpaceOf(caller);
    options.uploader = caller.Has(Scope::kWorker) ? BlobStore::Uploader::kWorker : BlobStore::Uploader::kClient;
    LH_ASSIGN_OR_RETURN(options.bounds, CheckQuota(caller, blob));
    options.moved = [&transfer] { transfer.Moved(); };
    LH_ASSIGN_OR_RETURN(const std::unique_ptr<BlobStore::Upload> upload, context_.blobs->BeginUpload(blob, options));
    LH_ASSIGN_OR_RETURN(const bool finished,
                        ReceiveBytes(caller, blob, upload.get(), &message, reader, &transfer, response));
    if (!finished) return absl::OkStatus();
    const bool submits = caller.Has(Scope::kSubmitter);
    LH_RETURN_IF_ERROR(
        context_.dispatcher->RecordBlobs({blob}, submits ? caller.project : "", submits ? audit : nullptr));
    response->set_committed_bytes(blob.size_bytes);
    return absl::OkStatus();
  }

  // The next message into `message`. False: the stream has ended, which it may do early.
  static bool Next(grpc::ServerReader<v1::WriteBlobRequest>* reader, TransferWatch::Transfer* transfer,
                   v1::WriteBlobRequest* message) {
    const bool more = reader->Read(message);
    transfer->Moved();
    return more;
  }

  static absl::Status CheckChunk(const v1::WriteBlobRequest& message) {
    if (message.data().size() <= static_cast<size_t>(limits::kBlobChunkBytes)) return absl::OkStatus();
    return InvalidField("data", "has " + std::to_string(message.data().size()) + " bytes; at most " +
                                    std::to_string(limits::kBlobChunkBytes));
  }

  // True: the blob is verified and durable. False: what came is kept, and the answer says how far it reached.
  absl::StatusOr<bool> ReceiveBytes(const Caller& caller, const BlobRef& blob, BlobStore::Upload* upload,
                                    v1::WriteBlobRequest* message, grpc::ServerReader<v1::WriteBlobRequest>* reader,
                                    TransferWatch::Transfer* transfer, v1::WriteBlobResponse* response) {
    if (upload->complete()) {
      LH_ASSIGN_OR_RETURN(const bool visible, MaySeeBlob(*context_.store, caller, blob));
      if (!visible) return ReceiveProof(blob, message, reader, transfer);
    }
    bool finish = upload->complete();
    while (!finish) {
      LH_RETURN_IF_ERROR(CheckChunk(*message));
      LH_RETURN_IF_ERROR(upload->Append(message->offset(), message->data()));
      finish = message->finish();
      if (!finish && !Next(reader, transfer, message)) break;
    }
    response->set_committed_bytes(upload->committed_bytes());
    if (finish) LH_RETURN_IF_ERROR(upload->Finish());
    return finish;
  }

  // The bytes are there, from another project: the caller sends them all the same, and their hash says whether it has
  // them. Nothing is kept of them. True: it has.
  static absl::StatusOr<bool> ReceiveProof(const BlobRef& blob, v1::WriteBlobRequest* message,
                                           grpc::ServerReader<v1::WriteBlobRequest>* reader,
                                           TransferWatch::Transfer* transfer) {
    Sha256 hash;
    int64_t received_bytes = 0;
    while (true) {
      LH_RETURN_IF_ERROR(CheckChunk(*message));
      if (message->offset() != received_bytes) {
        return MakeError(absl::StatusCode::kOutOfRange, "BLOB_OFFSET",
                         "data at offset " + std::to_string(message->offset()) + " of blob " + blob.sha256 +
                             ", of which 0 bytes are there: begin at its begin");
      }
      hash.Update(message->data());
      received_bytes += static_cast<int64_t>(message->data().size());
      if (received_bytes > blob.size_bytes || message->finish()) break;
      if (!Next(reader, transfer, message)) return false;
    }
    const std::string digest = hash.HexDigest();
    if (received_bytes == blob.size_bytes && digest == blob.sha256) return true;
    return MakeError(absl::StatusCode::kInvalidArgument, "BLOB_HASH_MISMATCH",
                     "the data has " + std::to_string(received_bytes) + " bytes and the SHA-256 " + digest + ", not " +
                         blob.sha256 + "; nothing was stored");
  }

  absl::Status Send(const Caller& caller, grpc::ServerContext* call, const v1::ReadBlobRequest& request,
                    grpc::ServerWriter<v1::ReadBlobResponse>* writer) {
    LH_ASSIGN_OR_RETURN(const CallLimits::Slot caller_slot, context_.gate.limits()->TakeTransfer(caller));
    const TransferSlot slot(&transfers_);
    LH_RETURN_IF_ERROR(slot.status());
    TransferWatch::Transfer transfer(context_.transfers, call);
    LH_ASSIGN_OR_RETURN(const BlobRef blob, RefOf(request.blob(), "blob"));
    LH_ASSIGN_OR_RETURN(const bool hidden, Hidden(caller, blob));
    if (hidden) return BlobStore::NotFound(blob);
    LH_ASSIGN_OR_RETURN(const int64_t size_bytes, context_.blobs->Size(blob));
    if (request.offset() < 0) {
      return InvalidField("offset", "is " + std::to_string(request.offset()) + "; must be 0 or more");
    }
    if (request.offset() > size_bytes) {
      return MakeError(
          absl::StatusCode::kOutOfRange, "BLOB_OFFSET",
          "offset is " + std::to_string(request.offset()) + "; the blob has " + std::to_string(size_bytes) + " bytes");
    }
    if (request.length() < 0) {
      return InvalidField("length", "is " + std::to_string(request.length()) + "; must be 0 or more");
    }
    const int64_t left = size_bytes - request.offset();
    const int64_t end = request.offset() + (request.length() == 0 ? left : std::min(left, request.length()));
    v1::ReadBlobResponse response;
    for (int64_t offset = request.offset(); offset < end;) {
      LH_ASSIGN_OR_RETURN(*response.mutable_data(),
                          context_.blobs->Read(blob, offset, std::min(limits::kBlobChunkBytes, end - offset)));
      if (response.data().empty()) {
        return MakeError(absl::StatusCode::kDataLoss, "BLOB_TRUNCATED",
                         "blob " + blob.sha256 + " ends at byte " + std::to_string(offset));
      }
      offset += static_cast<int64_t>(response.data().size());
      LH_RETURN_IF_ERROR(Failpoint("blob_before_chunk"));
      if (!writer->Write(response)) return absl::CancelledError("the client went away");
      transfer.Moved();
    }
    return absl::OkStatus();
  }

  const RpcContext& context_;
  std::atomic<int> transfers_{0};
};

}  // namespace

std::unique_ptr<grpc::Service> MakeBlobService(const RpcContext* context) {
  return std::make_unique<BlobService>(context);
}

}  // namespace longhaul::server
