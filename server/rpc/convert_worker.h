// The worker protocol <-> the dispatcher's values, and workers as an operator sees them. As convert.h: what agents send
// is checked, INVALID_ARGUMENT names the field. Unknown fields are ignored. Pure, thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "longhaul/v1/worker_admin_service.pb.h"
#include "longhaul/v1/worker_service.pb.h"
#include "server/dispatcher.h"

namespace longhaul::server {

AttemptKey FromProto(const v1::AttemptKey& key);
v1::AttemptKey ToProto(const AttemptKey& key);

absl::StatusOr<SessionInput> FromProto(const v1::OpenSessionRequest& request);
absl::StatusOr<AttemptReport> FromProto(const v1::AttemptStatus& status, const std::string& field);
absl::StatusOr<SyncInput> FromProto(const v1::SyncRequest& request);
// As it is stored.
std::string FromProto(const v1::TrainingResult& result);

v1::OpenSessionResponse ToProto(const SessionReply& reply);
// INTERNAL where a stored spec does not parse.
absl::StatusOr<v1::SyncResponse> ToProto(const SyncReply& reply);

v1::Worker ToProto(const WorkerView& view);

}  // namespace longhaul::server
