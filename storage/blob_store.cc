#include "storage/blob_store.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/status_macros.h"

namespace longhaul::storage {
namespace {

constexpr char kPartialSuffix[] = ".part";

absl::Status Refused(const BlobRef& blob) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "BLOB_HASH_MISMATCH",
                   "this upload of blob " + blob.sha256 + " was refused: begin a new one");
}

int64_t MtimeWallMicros(const std::string& path) {
  std::error_code error;
  const auto time = std::filesystem::last_write_time(path, error);
  if (error) return 0;
  const auto wall = std::chrono::file_clock::to_sys(time).time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(wall).count();
}

}  // namespace

struct BlobStore::Upload::State {
  BlobStore* store = nullptr;
  BlobRef blob;
  std::string partial_path;
  Uploader uploader = Uploader::kWorker;
  bool complete = false;
  bool resumed = false;            // some of its bytes are of an earlier upload
  std::optional<AppendFile> file;  // absent once complete, and once refused
  Sha256 hash;                     // of file's bytes
  std::string digest;              // once hash is done
};

BlobStore::Upload::Upload(std::unique_ptr<State> state) : state_(std::move(state)) {}
BlobStore::Upload::~Upload() {
  if (!state_->partial_path.empty()) state_->store->EndUpload(state_->partial_path);
}

int64_t BlobStore::Upload::committed_bytes() const {
  if (state_->complete) return state_->blob.size_bytes;
  return state_->file.has_value() ? state_->file->size() : 0;
}
bool BlobStore::Upload::complete() const { return state_->complete; }

absl::Status BlobStore::Upload::Append(int64_t offset, std::string_view data) {
  if (state_->complete) return absl::OkStatus();
  if (!state_->file.has_value()) return Refused(state_->blob);
  const int64_t size = state_->file->size();
  if (offset < 0 || offset > size) {
    return MakeError(absl::StatusCode::kOutOfRange, "BLOB_OFFSET",
                     "data at offset " + std::to_string(offset) + " of blob " + state_->blob.sha256 + ", of which " +
                         std::to_string(size) + " bytes are there: continue from that offset");
  }
  data.remove_prefix(std::min<size_t>(data.size(), static_cast<size_t>(size - offset)));
  if (data.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(data.size()) > state_->blob.size_bytes - size) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BLOB_SIZE_MISMATCH",
                     "more data than the " + std::to_string(state_->blob.size_bytes) + " bytes that blob " +
                         state_->blob.sha256 + " is said to have");
  }
  LH_RETURN_IF_ERROR(state_->store->CheckSpace(static_cast<int64_t>(data.size()), state_->uploader));
  LH_RETURN_IF_ERROR(Failpoint("blob_append"));
  LH_RETURN_IF_ERROR(state_->file->Append(data));
  state_->hash.Update(data);
  return absl::OkStatus();
}

absl::Status BlobStore::Upload::Finish() {
  if (state_->complete) return absl::OkStatus();
  if (!state_->file.has_value()) return Refused(state_->blob);
  if (state_->file->size() != state_->blob.size_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BLOB_SIZE_MISMATCH",
                     "blob " + state_->blob.sha256 + " has " + std::to_string(state_->file->size()) + " of " +
                         std::to_string(state_->blob.size_bytes) + " bytes: append the rest first");
  }
  if (state_->digest.empty()) state_->digest = state_->hash.HexDigest();
  if (state_->digest != state_->blob.sha256) {
    state_->file.reset();
    LH_RETURN_IF_ERROR(RemoveFile(state_->partial_path));
    state_->store->EndUpload(std::exchange(state_->partial_path, std::string()));
    // What an earlier upload left may be what a crash left of it: not the client's fault, and gone now.
    return MakeError(
        state_->resumed ? absl::StatusCode::kUnavailable : absl::StatusCode::kInvalidArgument, "BLOB_HASH_MISMATCH",
        "the data's SHA-256 is " + state_->digest + ", not " + state_->blob.sha256 + "; nothing was stored" +
            (state_->resumed ? ": part of it was kept from an earlier upload, begin again at offset 0" : ""));
  }
  const std::string path = state_->store->BlobPath(state_->blob.sha256);
  LH_RETURN_IF_ERROR(CreateDirs(path.substr(0, path.rfind('/'))));
  LH_RETURN_IF_ERROR(Failpoint("blob_before_sync"));
  LH_RETURN_IF_ERROR(state_->file->Sync());
  LH_RETURN_IF_ERROR(Failpoint("blob_before_rename"));
  LH_RETURN_IF_ERROR(state_->store->Rename(state_->partial_path, path));
  Failpoint("blob_after_rename").IgnoreError();  // armed to crash or to sleep
  state_->complete = true;
  state_->file.reset();
  state_->store->EndUpload(std::exchange(state_->partial_path, std::string()));
  return absl::OkStatus();
}

// Its name may be there and yet not last: then nobody is told that it is (Present), until its folder could be synced.
absl::Status BlobStore::Rename(const std::string& partial_path, const std::string& path) {
  {
    std::lock_guard lock(unsynced_mutex_);
    unsynced_.insert(path);
  }
  if (const absl::Status renamed = RenameFile(partial_path, path); !renamed.ok() && !FileExists(path)) {
    std::lock_guard lock(unsynced_mutex_);
    unsynced_.erase(path);
    return renamed;
  }
  return SyncName(path);
}

absl::Status BlobStore::SyncName(const std::string& path) {
  {
    std::lock_guard lock(unsynced_mutex_);
    if (!unsynced_.contains(path)) return absl::OkStatus();
  }
  // The folder blobs/ab may be new: its own entry has to last, too.
  LH_RETURN_IF_ERROR(SyncDir(path.substr(0, path.rfind('/'))));
  LH_RETURN_IF_ERROR(SyncDir(JoinPath(state_dir_, "blobs")));
  std::lock_guard lock(unsynced_mutex_);
  unsynced_.erase(path);
  return absl::OkStatus();
}

BlobStore::BlobStore(std::string state_dir, Options options)
    : state_dir_(std::move(state_dir)), options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<BlobStore>> BlobStore::Open(const std::string& state_dir, Options options) {
  if (options.create_folders) {
    LH_RETURN_IF_ERROR(CreateDirs(JoinPath(state_dir, "blobs")));
    LH_RETURN_IF_ERROR(CreateDirs(JoinPath(state_dir, "uploads")));
    // An earlier process may have died between a rename and its sync.
    const std::string blobs = JoinPath(state_dir, "blobs");
    LH_ASSIGN_OR_RETURN(const std::vector<std::string> folders, ListDir(blobs));
    for (const std::string& folder : folders) LH_RETURN_IF_ERROR(SyncDir(JoinPath(blobs, folder)));
    LH_RETURN_IF_ERROR(SyncDir(blobs));
  }
  if (!options.free_bytes) options.free_bytes = [](const std::string& path) { return DiskFreeBytes(path); };
  if (!options.disk_bytes) options.disk_bytes = [](const std::string& path) { return DiskSizeBytes(path); };
  const bool changes = options.create_folders;
  std::unique_ptr<BlobStore> store(new BlobStore(state_dir, std::move(options)));
  if (changes) LH_RETURN_IF_ERROR(store->FindPartials());
  return store;
}

std::string BlobStore::BlobPath(const std::string& sha256) const {
  return JoinPath(JoinPath(JoinPath(state_dir_, "blobs"), sha256.substr(0, 2)), sha256);
}

std::string BlobStore::PartialPath(const BlobRef& blob, const std::string& space) const {
  const bool hex = space.find_first_not_of("0123456789abcdef") == std::string::npos;
  LH_CHECK(hex, space);
  return JoinPath(JoinPath(state_dir_, "uploads"), blob.sha256 + "-" + std::to_string(blob.size_bytes) +
                                                       (space.empty() ? "" : "-" + space) + kPartialSuffix);
}

absl::Status BlobStore::CheckName(const BlobRef& blob, bool size_known) const {
  if (!IsSha256Hex(blob.sha256)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BLOB_NAME",
                     "a blob is named by its SHA-256, 64 lower-case hex digits", {{"blob.sha256", "is not that"}});
  }
  const int64_t least = size_known ? 1 : 0;
  if (blob.size_bytes < least || blob.size_bytes > options_.max_blob_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BLOB_NAME",
                     "a blob of " + std::to_string(blob.size_bytes) + " bytes; it must have 1 to " +
                         std::to_string(options_.max_blob_bytes),
                     {{"blob.size_bytes", "is " + std::to_string(blob.size_bytes)}});
  }
  return absl::OkStatus();
}

absl::Status BlobStore::CheckSpace(int64_t bytes_to_come, Uploader uploader) const {
  LH_ASSIGN_OR_RETURN(const int64_t free, options_.free_bytes(state_dir_));
  int64_t kept = options_.min_free_bytes;
  if (uploader == Uploader::kClient) {
    LH_ASSIGN_OR_RETURN(const int64_t disk, options_.disk_bytes(state_dir_));
    kept += std::min(disk / limits::kClientDiskReserve, limits::kMaxClientDiskReserveBytes);
  }
  if (free - bytes_to_come >= kept) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "DISK_FULL",
                   "the scheduler's disk has " + FormatBytes(free) + " free, needs " + FormatBytes(bytes_to_come) +
                       " and keeps " + FormatBytes(kept) +
                       (uploader == Uploader::kClient ? " for itself and for jobs that run" : " for itself") +
                       ": free space or delete jobs, then try again");
}

void BlobStore::EndUpload(const std::string& partial_path) {
  partials_.End(partial_path, FileSize(partial_path).value_or(-1));
}

// Files of <sha256>-<size>[-<space>].part, of which an earlier process has left what it had.
absl::Status BlobStore::FindPartials() {
  const std::string folder = JoinPath(state_dir_, "uploads");
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(folder));
  for (const std::string& name : names) {
    const size_t end = name.rfind(kPartialSuffix);
    const size_t size = name.find('-');
    if (end == std::string::npos || size == std::string::npos) continue;
    const size_t space = name.find('-', size + 1);
    const std::string path = JoinPath(folder, name);
    partials_.Found(path, space == std::string::npos ? "" : name.substr(space + 1, end - space - 1),
                    FileSize(path).value_or(0));
  }
  return absl::OkStatus();
}

absl::Status BlobStore::NotFound(const BlobRef& blob) {
  return MakeError(absl::StatusCode::kNotFound, "BLOB_NOT_FOUND", "there is no blob " + blob.sha256);
}

absl::StatusOr<int64_t> BlobStore::Size(const BlobRef& blob) {
  LH_RETURN_IF_ERROR(CheckName(blob, false));
  const absl::StatusOr<int64_t> size = FileSize(BlobPath(blob.sha256));
  if (absl::IsNotFound(size.status())) return NotFound(blob);
  LH_RETURN_IF_ERROR(size.status());
  if (blob.size_bytes != 0 && *size != blob.size_bytes) return NotFound(blob);
  return *size;
}

absl::StatusOr<bool> BlobStore::Present(const BlobRef& blob) {
  const absl::StatusOr<int64_t> size = Size(blob);
  if (absl::IsNotFound(size.status())) return false;
  LH_RETURN_IF_ERROR(size.status());
  LH_RETURN_IF_ERROR(SyncName(BlobPath(blob.sha256)));
  return true;
}

absl::Status BlobStore::Remove(const BlobRef& blob) {
  LH_RETURN_IF_ERROR(CheckName(blob, false));
  return RemoveFile(BlobPath(blob.sha256));
}

absl::StatusOr<std::vector<BlobRef>> BlobStore::List(const std::string& prefix) {
  const bool hex = prefix.size() == 2 && IsSha256Hex(prefix + std::string(62, '0'));
  if (!hex) return MakeError(absl::StatusCode::kInvalidArgument, "BLOB_NAME", "a prefix has two hex digits");
  const std::string folder = JoinPath(JoinPath(state_dir_, "blobs"), prefix);
  std::vector<BlobRef> blobs;
  if (!IsDirectory(folder)) return blobs;
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(folder));
  for (const std::string& name : names) {
    if (!IsSha256Hex(name)) continue;
    const absl::StatusOr<int64_t> size = FileSize(JoinPath(folder, name));
    if (size.ok()) blobs.push_back({name, *size});
  }
  return blobs;
}

absl::StatusOr<BlobStore::WriteStatus> BlobStore::QueryWriteStatus(const BlobRef& blob, const std::string& space) {
  LH_RETURN_IF_ERROR(CheckName(blob, true));
  LH_ASSIGN_OR_RETURN(const bool present, Present(blob));
  if (present) return WriteStatus{blob.size_bytes, true};
  const absl::StatusOr<int64_t> size = FileSize(PartialPath(blob, space));
  if (absl::IsNotFound(size.status())) return WriteStatus{};
  LH_RETURN_IF_ERROR(size.status());
  return WriteStatus{*size, false};
}

absl::StatusOr<std::unique_ptr<BlobStore::Upload>> BlobStore::BeginUpload(const BlobRef& blob,
                                                                          const UploadOptions& options) {
  LH_RETURN_IF_ERROR(CheckName(blob, true));
  auto state = std::make_unique<Upload::State>();
  state->store = this;
  state->blob = blob;
  state->uploader = options.uploader;
  LH_ASSIGN_OR_RETURN(state->complete, Present(blob));
  if (state->complete) return std::unique_ptr<Upload>(new Upload(std::move(state)));
  const std::string path = PartialPath(blob, options.space);
  LH_RETURN_IF_ERROR(partials_.Begin(path, options.space, blob.size_bytes, options.bounds));
  state->partial_path = path;
  std::unique_ptr<Upload> upload(new Upload(std::move(state)));  // from here on its destructor ends the upload
  // The other upload may have finished between the first look and the claim.
  LH_ASSIGN_OR_RETURN(upload->state_->complete, Present(blob));
  if (upload->state_->complete) return upload;
  const int64_t there = FileSize(path).value_or(0);
  LH_RETURN_IF_ERROR(CheckSpace(blob.size_bytes - std::min(there, blob.size_bytes), options.uploader));
  // A longer partial file than the blob is none of ours: begin again.
  LH_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, there > blob.size_bytes ? 0 : -1));
  upload->state_->resumed = file.size() > 0;
  for (int64_t at = 0; at < file.size();) {
    LH_ASSIGN_OR_RETURN(const std::string chunk, ReadFileRange(path, at, limits::kBlobChunkBytes));
    if (chunk.empty()) break;
    upload->state_->hash.Update(chunk);
    at += static_cast<int64_t>(chunk.size());
    if (options.moved) options.moved();
  }
  upload->state_->file.emplace(std::move(file));
  return upload;
}

absl::StatusOr<std::string> BlobStore::Read(const BlobRef& blob, int64_t offset, int64_t length) {
  LH_ASSIGN_OR_RETURN(const int64_t size, Size(blob));
  if (offset < 0 || offset > size || length < 0) {
    return MakeError(absl::StatusCode::kOutOfRange, "BLOB_OFFSET",
                     "offset " + std::to_string(offset) + " of blob " + blob.sha256 + ", which has " +
                         std::to_string(size) + " bytes");
  }
  return ReadFileRange(BlobPath(blob.sha256), offset, std::min(length, size - offset));
}

absl::StatusOr<int> BlobStore::CollectUploads(int64_t wall_micros) {
  const std::string folder = JoinPath(state_dir_, "uploads");
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(folder));
  int removed = 0;
  for (const std::string& name : names) {
    const std::string path = JoinPath(folder, name);
    LH_ASSIGN_OR_RETURN(const bool gone, partials_.RemoveIdle(path, [&]() -> absl::StatusOr<bool> {
      if (MtimeWallMicros(path) >= wall_micros) return false;
      LH_RETURN_IF_ERROR(RemoveFile(path));
      return true;
    }));
    if (gone) ++removed;
  }
  return removed;
}

}  // namespace longhaul::storage
