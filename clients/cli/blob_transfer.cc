#include "clients/cli/blob_transfer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <ostream>

#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace longhaul::cli {

namespace {

constexpr int64_t kFirstBackoffMs = 200;
constexpr int64_t kMaxBackoffMs = 3'000;
constexpr int64_t kBusyPollMs = 500;

v1::BlobName NameOf(const std::string& sha256, int64_t size_bytes) {
  v1::BlobName name;
  name.set_sha256(sha256);
  name.set_size_bytes(size_bytes);
  return name;
}

// Runs `attempt` until it succeeds, fails for another reason than the connection, or has not got further than before,
// `reached` bytes, for retry_ms since it first failed there. A scheduler ends a connection now and then, or restarts.
absl::Status WithRetries(Client& client, int64_t retry_ms, const int64_t& reached,
                         const std::function<absl::Status()>& attempt) {
  int64_t backoff_ms = kFirstBackoffMs;
  int64_t reached_before = reached;
  std::optional<int64_t> until_ms;
  while (true) {
    const absl::Status status = attempt();
    const int64_t now_ms = client.env().clock->BootNanos() / kNanosPerMs;
    if (!until_ms.has_value() || reached > reached_before) {
      reached_before = reached;
      backoff_ms = kFirstBackoffMs;
      until_ms = now_ms + retry_ms;
    }
    if (!IsConnectionError(status) || ErrorReason(status) == "BLOB_BUSY" || now_ms >= *until_ms) return status;
    const std::string why =
        ErrorReason(status).empty() ? "connection lost, continuing" : std::string(status.message()) + "; again";
    *client.env().err << why << " in " << FormatDuration(static_cast<double>(backoff_ms) / 1000) << "\n";
    if (!client.WaitToTryAgain(backoff_ms)) return client.Error(grpc::Status::CANCELLED);
    backoff_ms = std::min(2 * backoff_ms, kMaxBackoffMs);
  }
}

// One redrawn line on a terminal; nothing elsewhere.
class TransferLine {
 public:
  TransferLine(const CliEnv& env, std::string verb, int64_t total) : env_(env), verb_(std::move(verb)), total_(total) {}
  ~TransferLine() {
    if (drawn_) *env_.err << "\r\x1b[K" << std::flush;
  }
  void Update(int64_t done) {
    const int percent =
        total_ == 0 ? 100 : static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total_));
    if (!env_.err_is_terminal || percent == percent_) return;
    percent_ = percent;
    drawn_ = true;
    *env_.err << "\r\x1b[K" << verb_ << " " << FormatBytes(done) << " of " << FormatBytes(total_) << " (" << percent
              << "%)" << std::flush;
  }

 private:
  const CliEnv& env_;
  std::string verb_;
  int64_t total_;
  int percent_ = -1;
  bool drawn_ = false;
};

absl::StatusOr<bool> IsMissing(Client& client, const v1::BlobName& name) {
  v1::FindMissingRequest request;
  *request.add_blobs() = name;
  LH_ASSIGN_OR_RETURN(const v1::FindMissingResponse response,
                      client.Call(client.blobs(), &v1::BlobService::Stub::FindMissing, request));
  return response.missing_size() > 0;
}

absl::Status SendFrom(Client& client, const std::string& path, const v1::BlobName& name, int64_t offset) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(offset);
  grpc::ClientContext context;
  client.SetDeadline(context, limits::kMaxTransferMs);
  StopSignal::Scope scope(*client.env().stop, [&context] { context.TryCancel(); });
  v1::WriteBlobResponse response;
  const auto writer = client.blobs().Write(&context, &response);
  TransferLine line(client.env(), "uploading", name.size_bytes());
  bool local_error = false;
  v1::WriteBlobRequest chunk;
  *chunk.mutable_blob() = name;
  do {
    const int64_t length = std::min(limits::kBlobChunkBytes, name.size_bytes() - offset);
    chunk.set_offset(offset);
    chunk.mutable_data()->resize(static_cast<size_t>(length));
    file.read(chunk.mutable_data()->data(), length);
    if (file.gcount() != length) {
      local_error = true;
      context.TryCancel();
      break;
    }
    offset += length;
    chunk.set_finish(offset == name.size_bytes());
    if (!writer->Write(chunk)) break;  // Finish says why
    chunk.clear_blob();
    line.Update(offset);
  } while (offset < name.size_bytes());
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (local_error) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "LOCAL_FILE",
                     path + " changed while it was being uploaded");
  }
  return client.Error(status);
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos &&
         static_cast<int>(name.size()) <= limits::kMaxArtifactNameBytes;
}

absl::Status ReceiveInto(Client& client, const v1::BlobFile& file, const std::string& partial, int64_t* reached) {
  int64_t offset = 0;
  if (FileExists(partial)) {
    LH_ASSIGN_OR_RETURN(offset, FileSize(partial));
  }
  if (offset > file.size_bytes()) offset = 0;
  auto out = AppendFile::Open(partial, offset);
  if (!out.ok()) return LocalFileError(out.status());
  if (offset < file.size_bytes()) {
    v1::ReadBlobRequest request;
    *request.mutable_blob() = NameOf(file.sha256(), file.size_bytes());
    request.set_offset(offset);
    grpc::ClientContext context;
    client.SetDeadline(context, limits::kMaxTransferMs);
    StopSignal::Scope scope(*client.env().stop, [&context] { context.TryCancel(); });
    const auto reader = client.blobs().Read(&context, request);
    TransferLine line(client.env(), "downloading " + file.path(), file.size_bytes());
    v1::ReadBlobResponse response;
    while (reader->Read(&response)) {
      if (out->size() + static_cast<int64_t>(response.data().size()) > file.size_bytes()) {
        context.TryCancel();
        reader->Finish();
        return MakeError(absl::StatusCode::kDataLoss, "WRONG_CONTENT", file.path() + " is longer than the server said");
      }
      if (absl::Status status = out->Append(response.data()); !status.ok()) {
        context.TryCancel();
        reader->Finish();
        return LocalFileError(status);
      }
      line.Update(out->size());
      *reached = std::max(*reached, out->size());
    }
    LH_RETURN_IF_ERROR(client.Error(reader->Finish()));
  }
  return out->Sync();
}

}  // namespace

absl::Status DescribeDataset(const std::string& field, const std::string& path, v1::Dataset* dataset) {
  if (IsDirectory(path)) return InvalidField(field, "is '" + path + "', a folder; give a JSONL file");
  const auto size = FileSize(path);
  if (!size.ok()) return LocalFileError(Annotate(size.status(), field));
  if (*size == 0) return InvalidField(field, "is '" + path + "', which is empty; it must have at least one line");
  if (*size > limits::kMaxBlobBytes) {
    return InvalidField(field, "is '" + path + "' of " + FormatBytes(*size) + "; at most " +
                                   FormatBytes(limits::kMaxBlobBytes) + " are allowed");
  }
  const auto sha256 = Sha256HexOfFile(path);
  if (!sha256.ok()) return LocalFileError(Annotate(sha256.status(), field));
  dataset->set_sha256(*sha256);
  dataset->set_size_bytes(*size);
  dataset->set_file_name(std::filesystem::path(path).filename().string());
  return absl::OkStatus();
}

namespace {

// One upload, from where an earlier one got to: `reached`.
absl::Status Upload(Client& client, const std::string& path, const v1::BlobName& name, int64_t* reached) {
  for (bool again = false;; again = true) {
    v1::QueryWriteStatusRequest query;
    *query.mutable_blob() = name;
    LH_ASSIGN_OR_RETURN(const v1::QueryWriteStatusResponse there,
                        client.Call(client.blobs(), &v1::BlobService::Stub::QueryWriteStatus, query));
    if (there.complete()) return absl::OkStatus();
    const int64_t committed = there.committed_bytes();
    const int64_t offset = committed < 0 || committed > name.size_bytes() ? 0 : committed;
    *reached = std::max(*reached, offset);
    const absl::Status sent = SendFrom(client, path, name, offset);
    // What an earlier upload left may be damaged; the scheduler has dropped it by now. Once from the start, then it is
    // the file's fault.
    if (ErrorReason(sent) != "BLOB_HASH_MISMATCH" || offset == 0 || again) return sent;
  }
}

// Somebody else uploads the same data: theirs is as good as ours, and ours goes on where theirs breaks off.
absl::Status WaitWhileBusy(Client& client, int64_t retry_ms, const std::string& path, const v1::BlobName& name) {
  for (int64_t waited_ms = 0;; waited_ms += kBusyPollMs) {
    int64_t reached = 0;
    const absl::Status status = WithRetries(client, retry_ms, reached, [&]() -> absl::Status {
      LH_ASSIGN_OR_RETURN(const bool missing, IsMissing(client, name));
      return missing ? Upload(client, path, name, &reached) : absl::OkStatus();
    });
    if (ErrorReason(status) != "BLOB_BUSY" || waited_ms >= limits::kMaxTransferMs) return status;
    if (waited_ms == 0) *client.env().err << "another upload of the same data is under way; waiting for it\n";
    if (client.env().stop->WaitForMillis(kBusyPollMs)) return client.Error(grpc::Status::CANCELLED);
  }
}

}  // namespace

absl::StatusOr<bool> NeedsUpload(Client& client, const v1::Dataset& dataset) {
  return IsMissing(client, NameOf(dataset.sha256(), dataset.size_bytes()));
}

absl::Status UploadDataset(Client& client, const std::string& path, const v1::Dataset& dataset, int64_t retry_ms) {
  const v1::BlobName name = NameOf(dataset.sha256(), dataset.size_bytes());
  LH_ASSIGN_OR_RETURN(const bool missing, IsMissing(client, name));
  if (!missing) return absl::OkStatus();
  LH_RETURN_IF_ERROR(WaitWhileBusy(client, retry_ms, path, name));
  *client.env().err << "uploaded " << dataset.file_name() << " (" << FormatBytes(dataset.size_bytes()) << ")\n";
  return absl::OkStatus();
}

absl::Status DownloadFile(Client& client, const v1::BlobFile& file, const std::string& dir) {
  if (!IsPlainName(file.path())) {
    return MakeError(absl::StatusCode::kDataLoss, "BAD_FILE_NAME",
                     "the server names a file '" + file.path() + "', which is not a plain file name");
  }
  const std::string target = JoinPath(dir, file.path());
  if (FileExists(target)) {
    const auto sha256 = Sha256HexOfFile(target);
    if (sha256.ok() && *sha256 == file.sha256()) return absl::OkStatus();
  }
  const std::string partial = JoinPath(dir, "." + file.path() + "." + file.sha256().substr(0, 12) + ".part");
  const bool continued = FileExists(partial);
  for (int round = 0;; ++round) {
    int64_t reached = 0;
    LH_RETURN_IF_ERROR(
        WithRetries(client, kDownloadRetryMs, reached, [&] { return ReceiveInto(client, file, partial, &reached); }));
    const auto sha256 = Sha256HexOfFile(partial);
    if (!sha256.ok()) return LocalFileError(sha256.status());
    if (*sha256 == file.sha256()) break;
    LH_RETURN_IF_ERROR(RemoveFile(partial));
    // The beginning may be another run's torn write: once from the start, then it is the server's fault.
    if (continued && round == 0) continue;
    return MakeError(absl::StatusCode::kDataLoss, "WRONG_CONTENT",
                     file.path() + " has SHA-256 " + *sha256 + " instead of " + file.sha256());
  }
  if (absl::Status status = RenameFile(partial, target); !status.ok()) return LocalFileError(status);
  return absl::OkStatus();
}

}  // namespace longhaul::cli
