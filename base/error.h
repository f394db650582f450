// Errors with a machine-readable reason and the fields at fault, carried inside absl::Status as payloads.
// The gRPC edge turns them into google.rpc.ErrorInfo and BadRequest; the CLI prints them; nobody parses messages.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace longhaul {

struct FieldViolation {
  std::string field;        // path as the user wrote it: "spec.hyperparameters.lora_rank"
  std::string description;  // what is wrong, with the value and the limit: "is 0; must be 1 to 1024"
};

// `reason` is UPPER_SNAKE: MODEL_UNKNOWN, EXCEEDS_EVERY_DEVICE, ...
absl::Status MakeError(absl::StatusCode code, const std::string& reason, const std::string& message,
                       std::vector<FieldViolation> violations = {});

// INVALID_ARGUMENT with reason INVALID_FIELD and one violation; the message is "<field> <description>".
absl::Status InvalidField(const std::string& field, const std::string& description);

// "" where the status carries none.
std::string ErrorReason(const absl::Status& status);
std::vector<FieldViolation> ErrorViolations(const absl::Status& status);

// The same status with what its reader can do about it, said where that is known best. Programs print it under the
// message; "" where nobody has said anything (base/program/error_text.h has words for the reasons then).
absl::Status WithAdvice(const absl::Status& status, const std::string& advice);
std::string ErrorAdvice(const absl::Status& status);

// The same status with a value under `key` for the program that reads it: ErrorInfo's metadata. "" where it has none.
absl::Status WithMetadata(const absl::Status& status, const std::string& key, const std::string& value);
std::string ErrorMetadata(const absl::Status& status, const std::string& key);
// All of it, by key.
std::map<std::string, std::string> ErrorMetadata(const absl::Status& status);

// True where the connection may be at fault, so that the same request may succeed on another: UNAVAILABLE, and INTERNAL
// or UNKNOWN without a reason, which is how gRPC calls a connection that is reset in the middle of a message. What the
// scheduler itself answers carries a reason.
bool IsConnectionError(const absl::Status& status);

// The same status with `prefix: ` before its message; reason, violations and advice stay.
absl::Status Annotate(const absl::Status& status, const std::string& prefix);

}  // namespace longhaul
