#include "storage/partial_uploads.h"

#include "base/error.h"
#include "base/format.h"
#include "base/status_macros.h"

namespace longhaul::storage {

void PartialUploads::Found(const std::string& path, const std::string& space, int64_t bytes) {
  std::lock_guard lock(mutex_);
  if (!partials_.emplace(path, Partial{space, bytes, false}).second) return;
  Totals& totals = totals_[space];
  ++totals.files;
  totals.bytes += bytes;
}

absl::Status PartialUploads::Begin(const std::string& path, const std::string& space, int64_t size_bytes,
                                   const PartialBounds& bounds) {
  std::lock_guard lock(mutex_);
  const auto found = partials_.find(path);
  const bool there = found != partials_.end();
  if (there && found->second.busy) {
    return MakeError(absl::StatusCode::kUnavailable, "BLOB_BUSY",
                     "another upload of this blob is under way: try again in a moment");
  }
  const Totals before = TotalsOf(space);
  if (!there && before.files >= bounds.files) {
    return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_UPLOADS",
                     "there are " + std::to_string(before.files) +
                         " unfinished uploads, the most that there may be: finish some, or try again in a day");
  }
  const int64_t bytes = before.bytes - (there ? found->second.bytes : 0);
  if (size_bytes > bounds.bytes - bytes) {
    return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_UPLOADS",
                     "with " + FormatBytes(bytes) + " of unfinished uploads this one of " + FormatBytes(size_bytes) +
                         " would pass the " + FormatBytes(bounds.bytes) +
                         " that are left of the project's: finish some or delete jobs, then try again in a day");
  }
  partials_[path] = {space, size_bytes, true};
  totals_[space] = {before.files + (there ? 0 : 1), bytes + size_bytes};
  return absl::OkStatus();
}

void PartialUploads::End(const std::string& path, int64_t bytes_left) {
  std::lock_guard lock(mutex_);
  const auto found = partials_.find(path);
  if (found == partials_.end()) return;
  if (bytes_left < 0) return Forget(found);
  Partial& partial = found->second;
  totals_[partial.space].bytes += bytes_left - partial.bytes;
  partial.bytes = bytes_left;
  partial.busy = false;
}

absl::StatusOr<bool> PartialUploads::RemoveIdle(const std::string& path,
                                                const std::function<absl::StatusOr<bool>()>& remove) {
  std::lock_guard lock(mutex_);
  const auto found = partials_.find(path);
  if (found != partials_.end() && found->second.busy) return false;
  LH_ASSIGN_OR_RETURN(const bool gone, remove());
  if (gone && found != partials_.end()) Forget(found);
  return gone;
}

void PartialUploads::Forget(std::map<std::string, Partial>::iterator at) {
  const auto totals = totals_.find(at->second.space);
  totals->second.bytes -= at->second.bytes;
  if (--totals->second.files == 0) totals_.erase(totals);
  partials_.erase(at);
}

PartialUploads::Totals PartialUploads::TotalsOf(const std::string& space) const {
  const auto found = totals_.find(space);
  return found == totals_.end() ? Totals() : found->second;
}

}  // namespace longhaul::storage
