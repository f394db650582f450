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
// lost on the way is retried, kTransferTries times without getting further. Progress goes to env.err on a terminal.
absl::Status UploadDataset(Client& client, const std::string& path, const v1::Dataset& dataset);

// Writes `file` as DIR/<file.path>: to a hidden partial file first, renamed once its SHA-256 is right. A partial file
// of an earlier run is continued. A file that is there already with the right content is left alone. `file.path` is
// from the server and must be one plain component.
absl::Status DownloadFile(Client& client, const v1::BlobFile& file, const std::string& dir);

inline constexpr int kTransferTries = 6;

}  // namespace longhaul::cli
