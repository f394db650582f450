// The blocking transfers of an attempt: inputs down, checkpoints and the adapter up. Each runs on a task thread,
// touches only the attempt's folder, and may be repeated after any failure.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "longhaul/v1/worker_service.pb.h"
#include "worker/agent/scheduler_client.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::agent {

// The datasets and the checkpoint to resume from, into inputs/. Continues partial files, verifies every SHA-256; files
// that are there and right are not fetched again. DATA_LOSS BLOB_CORRUPT where the bytes are not what the name says.
absl::Status FetchInputs(SchedulerClient* client, const attempt::AttemptDir& dir, const v1::AttemptSpec& spec,
                         const CancelFlag& cancelled);

// Uploads what the scheduler lacks of the files and names them. `names` are the trainer's; each is checked.
absl::StatusOr<std::vector<v1::BlobFile>> UploadFiles(SchedulerClient* client, const std::string& folder,
                                                      const std::vector<std::string>& names,
                                                      const CancelFlag& cancelled);

}  // namespace longhaul::agent
