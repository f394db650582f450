#include "worker/agent/transfers.h"

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::agent {
namespace {

absl::Status IfCancelled(const CancelFlag& cancelled) {
  if (!cancelled->load()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kCancelled, "TRANSFER_CANCELLED", "the transfer was cancelled");
}

absl::Status Corrupt(const v1::BlobName& blob, const std::string& path, const std::string& why) {
  return MakeError(absl::StatusCode::kDataLoss, "BLOB_CORRUPT", path + " is not blob " + blob.sha256() + ": " + why);
}

// Behind what an earlier try has left in `partial`; `had`: how many bytes that were.
absl::Status FetchPart(SchedulerClient* client, const v1::BlobName& blob, const std::string& partial,
                       const CancelFlag& cancelled, int64_t* had) {
  LH_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(partial));
  *had = file.size();
  const auto sink = [&](std::string_view bytes) -> absl::Status {
    LH_RETURN_IF_ERROR(IfCancelled(cancelled));
    if (blob.size_bytes() > 0 && file.size() + static_cast<int64_t>(bytes.size()) > blob.size_bytes()) {
      return Corrupt(blob, partial, "more than its " + std::to_string(blob.size_bytes()) + " bytes came");
    }
    return file.Append(bytes);
  };
  LH_RETURN_IF_ERROR(Failpoint("agent_before_fetch"));
  absl::Status read = client->ReadBlob(blob, file.size(), sink, cancelled);
  if (read.ok() && blob.size_bytes() > 0 && file.size() != blob.size_bytes()) {
    read = MakeError(absl::StatusCode::kUnavailable, "BLOB_SHORT", "blob " + blob.sha256() + " ended early");
  }
  if (!read.ok()) {
    // What is there stays for the next try, unless it cannot be a beginning of the blob.
    if (read.code() == absl::StatusCode::kDataLoss || read.code() == absl::StatusCode::kOutOfRange)
      (void)RemoveFile(partial);
    return read;
  }
  LH_ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(partial));
  if (digest != blob.sha256()) {
    (void)RemoveFile(partial);
    return Corrupt(blob, partial, "its SHA-256 is " + digest);
  }
  return file.Sync();
}

absl::Status FetchBlob(SchedulerClient* client, const v1::BlobName& blob, const std::string& path,
                       const CancelFlag& cancelled) {
  if (!IsSha256Hex(blob.sha256())) return Corrupt(blob, path, "the name is no SHA-256");
  if (FileExists(path)) {
    LH_ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(path));
    if (digest == blob.sha256()) return absl::OkStatus();
    LH_RETURN_IF_ERROR(RemoveFile(path));
  }
  const std::string partial = path + ".part";
  for (bool again = false;; again = true) {
    int64_t had = 0;
    const absl::Status fetched = FetchPart(client, blob, partial, cancelled, &had);
    if (fetched.ok()) return RenameFile(partial, path);
    // Its beginning is not synced, and a host that crashed may have torn it. Once from the start, then what comes is
    // not what its name says.
    if (FileExists(partial) || had == 0 || again) return fetched;
  }
}

v1::BlobName NameOf(const v1::Dataset& dataset) {
  v1::BlobName blob;
  blob.set_sha256(dataset.sha256());
  blob.set_size_bytes(dataset.size_bytes());
  return blob;
}

}  // namespace

bool IsRetryable(const absl::Status& status) {
  if (IsConnectionError(status)) return true;
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kResourceExhausted:
    // Credentials can be renewed, and an attempt that is well must not end because they were not in time.
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return true;
    default:
      // A file that was there when it was asked for may have been collected since: the next try uploads it.
      return ErrorReason(status) == "SESSION_CLOSED" || ErrorReason(status) == "BLOB_MISSING";
  }
}

absl::Status FetchInputs(SchedulerClient* client, const attempt::AttemptDir& dir, const v1::AttemptSpec& spec,
                         const CancelFlag& cancelled) {
  LH_RETURN_IF_ERROR(dir.Create());
  LH_RETURN_IF_ERROR(FetchBlob(client, NameOf(spec.spec().dataset()), dir.DatasetPath(), cancelled));
  if (spec.spec().has_eval_dataset()) {
    LH_RETURN_IF_ERROR(FetchBlob(client, NameOf(spec.spec().eval_dataset()), dir.EvalDatasetPath(), cancelled));
  }
  if (!spec.has_resume_from()) return absl::OkStatus();
  if (spec.resume_from().files_size() > limits::kMaxManifestFiles) {
    return InvalidField("resume_from.files", "has " + std::to_string(spec.resume_from().files_size()) +
                                                 " files; at most " + std::to_string(limits::kMaxManifestFiles));
  }
  LH_RETURN_IF_ERROR(CreateDirs(dir.ResumeDir()));
  for (const v1::BlobFile& file : spec.resume_from().files()) {
    LH_RETURN_IF_ERROR(attempt::ValidateFileName(file.path()));
    v1::BlobName blob;
    blob.set_sha256(file.sha256());
    blob.set_size_bytes(file.size_bytes());
    LH_RETURN_IF_ERROR(FetchBlob(client, blob, JoinPath(dir.ResumeDir(), file.path()), cancelled));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::BlobFile>> UploadFiles(SchedulerClient* client, const std::string& folder,
                                                      const std::vector<std::string>& names,
                                                      const CancelFlag& cancelled) {
  if (names.empty() || static_cast<int>(names.size()) > limits::kMaxManifestFiles) {
    return InvalidField("files", "has " + std::to_string(names.size()) + " files; must be 1 to " +
                                     std::to_string(limits::kMaxManifestFiles));
  }
  std::vector<v1::BlobFile> files;
  std::vector<v1::BlobName> blobs;
  for (const std::string& name : names) {
    LH_RETURN_IF_ERROR(attempt::ValidateFileName(name));
    LH_RETURN_IF_ERROR(IfCancelled(cancelled));
    const std::string path = JoinPath(folder, name);
    v1::BlobFile file;
    file.set_path(name);
    LH_ASSIGN_OR_RETURN(*file.mutable_sha256(), Sha256HexOfFile(path));
    LH_ASSIGN_OR_RETURN(const int64_t size, FileSize(path));
    file.set_size_bytes(size);
    v1::BlobName blob;
    blob.set_sha256(file.sha256());
    blob.set_size_bytes(size);
    blobs.push_back(blob);
    files.push_back(std::move(file));
  }
  LH_ASSIGN_OR_RETURN(const std::vector<v1::BlobName> missing, client->FindMissing(blobs));
  for (size_t i = 0; i < blobs.size(); ++i) {
    for (const v1::BlobName& absent : missing) {
      if (absent.sha256() != blobs[i].sha256()) continue;
      LH_RETURN_IF_ERROR(Failpoint("agent_before_blob"));
      LH_RETURN_IF_ERROR(client->WriteBlob(blobs[i], JoinPath(folder, names[i]), cancelled));
      break;
    }
  }
  return files;
}

}  // namespace longhaul::agent
