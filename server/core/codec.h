// Jobs, attempts, checkpoints, events, workers and metric points as bytes, for a store's rows (record.h).
// What is marked "not persisted" in job.h is not in them. Decoding hostile bytes fails, never crashes.
// Errors: DATA_LOSS CORRUPT_RECORD names what could not be read.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/job.h"

namespace longhaul::server {

std::string EncodeJob(const Job& job);
absl::StatusOr<Job> DecodeJob(std::string_view bytes);
std::string EncodeAttempt(const Attempt& attempt);
absl::StatusOr<Attempt> DecodeAttempt(std::string_view bytes);
std::string EncodeCheckpoint(const Checkpoint& checkpoint);
absl::StatusOr<Checkpoint> DecodeCheckpoint(std::string_view bytes);
std::string EncodeEvent(const JobEvent& event);
absl::StatusOr<JobEvent> DecodeEvent(std::string_view bytes);
std::string EncodeWorker(const Worker& worker);
absl::StatusOr<Worker> DecodeWorker(std::string_view bytes);
std::string EncodeMetrics(const std::vector<MetricPoint>& points);
absl::StatusOr<std::vector<MetricPoint>> DecodeMetrics(std::string_view bytes);

// Equal bytes for equal shapes: the key under which demands are shared.
std::string EncodeShapes(const ModelShape& model, const TrainShape& train);
std::string EncodeFacts(const DeviceFacts& facts);

}  // namespace longhaul::server
