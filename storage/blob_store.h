// Bytes by their SHA-256, as files of the state folder: blobs/ab/<sha256>, and uploads/<sha256>-<size>.part until they
// are complete. A file under its final name is whole, verified and durable: written, fsynced, renamed, folder fsynced.
// Names come from BlobRef only, which is checked to be 64 hex digits; no path ever comes from a client. A `space` (hex
// digits, "" = the common one) keeps unfinished uploads apart: uploads/<sha256>-<size>-<space>.part.
// The row that keeps a blob alive is the caller's next step (Dispatcher::RecordBlobs).
// Thread-safe. Errors: INVALID_ARGUMENT BLOB_NAME, BLOB_HASH_MISMATCH (UNAVAILABLE where bytes of an earlier upload may
// be at fault), BLOB_SIZE_MISMATCH; OUT_OF_RANGE BLOB_OFFSET;
// UNAVAILABLE BLOB_BUSY where another upload of the blob runs; RESOURCE_EXHAUSTED DISK_FULL, TOO_MANY_UPLOADS;
// NOT_FOUND BLOB_NOT_FOUND.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/limits.h"
#include "server/core/blob_index.h"
#include "storage/partial_uploads.h"

namespace longhaul::storage {

using server::BlobRef;

class BlobStore final : public server::BlobIndex {
 public:
  struct Options {
    int64_t max_blob_bytes = limits::kMaxBlobBytes;
    int64_t min_free_bytes = limits::kMinFreeDiskBytes;  // an upload that would leave less is refused
    std::function<absl::StatusOr<int64_t>(const std::string& path)> free_bytes;  // null: base/env.h DiskFreeBytes
    std::function<absl::StatusOr<int64_t>(const std::string& path)> disk_bytes;  // null: base/env.h DiskSizeBytes
    bool create_folders = true;  // false for readers that change nothing
  };

  // One upload of one blob. Destroyed before Finish: what was appended stays and can be resumed.
  // Not thread-safe. The store must outlive it.
  class Upload {
   public:
    ~Upload();
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;
    int64_t committed_bytes() const;  // where Append continues; the blob's size when it is complete
    bool complete() const;            // the blob was there already: nothing to append, Finish is OK
    // REQUIRES nothing of offset: bytes that are there already are skipped, a gap is OUT_OF_RANGE.
    absl::Status Append(int64_t offset, std::string_view data);
    // Verifies size and hash and makes the blob durable. On a mismatch the partial file is gone.
    absl::Status Finish();

   private:
    friend class BlobStore;
    struct State;
    explicit Upload(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
  };

  struct WriteStatus {
    int64_t committed_bytes = 0;
    bool complete = false;
  };

  static absl::StatusOr<std::unique_ptr<BlobStore>> Open(const std::string& state_dir, Options options);
  static absl::StatusOr<std::unique_ptr<BlobStore>> Open(const std::string& state_dir) {
    return Open(state_dir, Options());
  }

  absl::StatusOr<bool> Present(const BlobRef& blob) override;
  absl::Status Remove(const BlobRef& blob) override;
  absl::StatusOr<std::vector<BlobRef>> List(const std::string& prefix) override;

  // The blob's size; size_bytes of `blob` may be 0 = unknown. NOT_FOUND BLOB_NOT_FOUND.
  absl::StatusOr<int64_t> Size(const BlobRef& blob);
  absl::StatusOr<WriteStatus> QueryWriteStatus(const BlobRef& blob, const std::string& space = "");
  // A client's uploads leave more of the disk free than a worker's: what jobs that run have to write comes first.
  enum class Uploader { kWorker, kClient };
  struct UploadOptions {
    std::string space;
    Uploader uploader = Uploader::kWorker;
    PartialBounds bounds;         // of the space's unfinished uploads
    std::function<void()> moved;  // told with each piece of an earlier upload that is read anew; null = nobody
  };
  absl::StatusOr<std::unique_ptr<Upload>> BeginUpload(const BlobRef& blob, const UploadOptions& options);
  absl::StatusOr<std::unique_ptr<Upload>> BeginUpload(const BlobRef& blob) { return BeginUpload(blob, {}); }
  // Up to `length` bytes at `offset`, fewer at the end. size_bytes of `blob` may be 0 = unknown.
  absl::StatusOr<std::string> Read(const BlobRef& blob, int64_t offset, int64_t length);
  // Deletes unfinished uploads untouched since `wall_micros`. Returns how many.
  absl::StatusOr<int> CollectUploads(int64_t wall_micros);
  // Bytes of all blobs are in Store::Sizes (from rows).

  // What Size and Read answer of an absent blob: NOT_FOUND BLOB_NOT_FOUND.
  static absl::Status NotFound(const BlobRef& blob);

 private:
  BlobStore(std::string state_dir, Options options);
  std::string BlobPath(const std::string& sha256) const;
  std::string PartialPath(const BlobRef& blob, const std::string& space) const;
  absl::Status CheckName(const BlobRef& blob, bool size_known) const;
  absl::Status CheckSpace(int64_t bytes_to_come, Uploader uploader) const;
  absl::Status FindPartials();
  void EndUpload(const std::string& partial_path);
  absl::Status Rename(const std::string& partial_path, const std::string& path);
  absl::Status SyncName(const std::string& path);

  const std::string state_dir_;
  const Options options_;
  PartialUploads partials_;
  std::mutex unsynced_mutex_;       // guards unsynced_
  std::set<std::string> unsynced_;  // blobs whose names are there and not known to last
};

}  // namespace longhaul::storage
