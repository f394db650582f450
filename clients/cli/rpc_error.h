// Errors of a call as the user meets them: grpc::Status with its details -> absl::Status -> text and exit code.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/program/error_text.h"

namespace grpc {
class Status;
}

namespace longhaul::cli {

using program::ExitCode;
using enum program::ExitCode;
using program::ExitCodeFor;
using program::LocalFileError;

// Reason and field violations come from google.rpc.ErrorInfo and BadRequest in the status details; undecodable details
// leave code and message. UNAVAILABLE and DEADLINE_EXCEEDED name `address`.
absl::Status FromGrpcStatus(const grpc::Status& status, const std::string& address);

// What to do about it, by its reason, else by its code; never empty. REQUIRES: not OK.
std::string HintFor(const absl::Status& status);

// What happened, the fields at fault, and what to do; ends with a line break.
std::string DescribeError(const absl::Status& status);

}  // namespace longhaul::cli
