#include "server/rpc/blob_service.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "longhaul/v1/blob_service.grpc.pb.h"

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
    return context_.gate.Unary(*call, "BlobService/FindMissing", Scope::kSubmitterOrWorker, [&](const Caller&) {
      if (request->blobs_size() > limits::kMaxBlobsPerFindMissing) {
        return InvalidField("blobs", "has " + std::to_string(request->blobs_size()) + " elements; at most " +
                                         std::to_string(limits::kMaxBlobsPerFindMissing));
      }
      std::vector<BlobRef> present;
      for (int i = 0; i < request->blobs_size(); ++i) {
        LH_ASSIGN_OR_RETURN(BlobRef blob, RefOf(request->blobs(i), "blobs[" + std::to_string(i) + "]"));
        LH_ASSIGN_OR_RETURN(const bool there, context_.blobs->Present(blob));
        if (there) {
          present.push_back(std::move(blob));
        } else {
          *response->add_missing() = request->blobs(i);
        }
      }
      return present.empty() ? absl::OkStatus() : context_.dispatcher->RecordBlobs(std::move(present));
    });
  }

  grpc::Status QueryWriteStatus(grpc::ServerContext* call, const v1::QueryWriteStatusRequest* request,
                                v1::QueryWriteStatusResponse* response) override {
    return context_.gate.Unary(*call, "BlobService/QueryWriteStatus", Scope::kSubmitterOrWorker, [&](const Caller&) {
      LH_ASSIGN_OR_RETURN(const BlobRef blob, RefOf(request->blob(), "blob"));
      absl::StatusOr<BlobStore::WriteStatus> status = context_.blobs->QueryWriteStatus(blob);
      if (!status.ok()) return status.status();
      response->set_committed_bytes(status->committed_bytes);
      response->set_complete(status->complete);
      return absl::OkStatus();
    });
  }

  grpc::Status Write(grpc::ServerContext* call, grpc::ServerReader<v1::WriteBlobRequest>* reader,
                     v1::WriteBlobResponse* response) override {
    absl::Status status = context_.gate.Admit(*call, Scope::kSubmitterOrWorker).status();
    if (status.ok()) status = Receive(reader, response);
    return context_.gate.End("BlobService/Write", status);
  }

  grpc::Status Read(grpc::ServerContext* call, const v1::ReadBlobRequest* request,
                    grpc::ServerWriter<v1::ReadBlobResponse>* writer) override {
    absl::Status status = context_.gate.Admit(*call, Scope::kViewerOrWorker).status();
    if (status.ok()) status = Send(*request, writer);
    return context_.gate.End("BlobService/Read", status);
  }

 private:
  absl::Status Receive(grpc::ServerReader<v1::WriteBlobRequest>* reader, v1::WriteBlobResponse* response) {
    const TransferSlot slot(&transfers_);
    LH_RETURN_IF_ERROR(slot.status());
    v1::WriteBlobRequest message;
    if (!reader->Read(&message)) return InvalidField("blob", "is absent; the first message must name the blob");
    LH_ASSIGN_OR_RETURN(const BlobRef blob, RefOf(message.blob(), "blob"));
    LH_ASSIGN_OR_RETURN(const std::unique_ptr<BlobStore::Upload> upload, context_.blobs->BeginUpload(blob));
    bool finish = upload->complete();
    while (!finish) {
      if (message.data().size() > static_cast<size_t>(limits::kBlobChunkBytes)) {
        return InvalidField("data", "has " + std::to_string(message.data().size()) + " bytes; at most " +
                                        std::to_string(limits::kBlobChunkBytes));
      }
      LH_RETURN_IF_ERROR(upload->Append(message.offset(), message.data()));
      finish = message.finish();
      // The stream may end early: what came is kept, and the answer says how far it reached.
      if (!finish && !reader->Read(&message)) break;
    }
    if (finish) {
      LH_RETURN_IF_ERROR(upload->Finish());
      LH_RETURN_IF_ERROR(context_.dispatcher->RecordBlobs({blob}));
    }
    response->set_committed_bytes(upload->committed_bytes());
    return absl::OkStatus();
  }

  absl::Status Send(const v1::ReadBlobRequest& request, grpc::ServerWriter<v1::ReadBlobResponse>* writer) {
    const TransferSlot slot(&transfers_);
    LH_RETURN_IF_ERROR(slot.status());
    LH_ASSIGN_OR_RETURN(const BlobRef blob, RefOf(request.blob(), "blob"));
    LH_ASSIGN_OR_RETURN(const int64_t size_bytes, context_.blobs->Size(blob));
    if (request.offset() < 0 || request.offset() > size_bytes) {
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
      if (!writer->Write(response)) return absl::CancelledError("the client went away");
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
