// Bytes to and from the scheduler's blob store, each way verified by SHA-256 and resumed after a broken connection.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cli/client.h"
#include "longhaul/v1/job.pb.h"

namespace longhaul::cli {

// Hashes the file and fills sha256, size_bytes and file_name (the last component) of `dataset`; `field` is its name in
// errors, "spec.dataset".
// Errors: LOCAL_FILE where it cannot be read, INVALID_ARGUMENT where it is empty or too large.
absl::Status DescribeDataset(const std::string& field, const std::string& path, v1::Dataset* dataset);

// Whether the store lacks the file's bytes.
absl::StatusOr<bool> NeedsUpload(Client& client, const v1::Dataset& dataset);

// Makes the store have the file's bytes: asks first, then sends from where an earlier upload broke off. A connection
// lost on the way is tried again, for retry_ms without getting further. Progress goes to env.err on a terminal.
absl::Status UploadDataset(Client& client, const std::string& path, const v1::Dataset& dataset, int64_t retry_ms);

// Writes `file` as DIR/<file.path>: to a hidden partial file first, renamed once its SHA-256 is right. A partial file
// of an earlier run is continued. A file that is there already with the right content is left alone. `file.path` is
// from the server and must be one plain component.
absl::Status DownloadFile(Client& client, const v1::BlobFile& file, const std::string& dir);

inline constexpr int64_t kDownloadRetryMs = 30'000;  // the same, of a download

}  // namespace longhaul::cli
