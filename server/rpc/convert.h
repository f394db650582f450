// The scheduler's values <-> the public protos. ToProto is total. FromProto checks everything that comes from outside:
// INVALID_ARGUMENT names the field. Serialised protos that the domain keeps opaque are parsed here; one that does not
// parse is left out and logged, because it was ours. Pure, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/timestamp.pb.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "longhaul/v1/job.pb.h"
#include "server/core/explain.h"
#include "server/core/job.h"

namespace longhaul::server {

google::protobuf::Timestamp ToTimestamp(int64_t wall_micros);
// Microseconds since the epoch; 0 where it is absent (all zero).
int64_t FromTimestamp(const google::protobuf::Timestamp& time);

// Without `estimate`, which only a plan knows. `wait`: what the scheduler says of a job that waits; its reason is newer
// than the stored one.
v1::Job ToProto(const Job& job, const std::optional<WaitInfo>& wait);
v1::JobEvent ToProto(const JobEvent& event);
v1::Attempt ToProto(const Attempt& attempt);
v1::Checkpoint ToProto(const Checkpoint& checkpoint);
// The message that the point carries, with the point's attempt and step.
v1::TrainingProgress ToProto(const MetricPoint& point);

// INVALID_ARGUMENT for a number that the enum lacks or UNSPECIFIED.
absl::StatusOr<JobState> FromProto(v1::JobState state, const std::string& field);

// One path component each, at most limits::kMaxManifestFiles, no name twice, hashes and sizes well-formed.
absl::StatusOr<std::vector<NamedBlob>> FromProto(const google::protobuf::RepeatedPtrField<v1::BlobFile>& files,
                                                 const std::string& field);
absl::StatusOr<Checkpoint> FromProto(const v1::Checkpoint& checkpoint);

}  // namespace longhaul::server
