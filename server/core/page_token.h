// List's page token: the create_number to continue behind, and a hash of the filter it belongs to, so that a token of
// another query is refused instead of giving nonsense. Both stores make and read the same tokens. Opaque to clients.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/core/store.h"

namespace longhaul::server {

std::string MakePageToken(const JobFilter& filter, uint64_t last_create_number);
// INVALID_ARGUMENT INVALID_FIELD names page_token.
absl::StatusOr<uint64_t> ReadPageToken(const JobFilter& filter);

}  // namespace longhaul::server
