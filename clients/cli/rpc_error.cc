#include "clients/cli/rpc_error.h"

#include <grpcpp/support/status.h>

#include <vector>

#include "base/error.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace longhaul::cli {
namespace {

struct Hint {
  const char* reason;
  const char* text;
};

// What to do, by reason. A reason that is absent here gets the hint of its code.
constexpr Hint kHints[] = {
    {"MODEL_UNKNOWN",
     "`longhaul workers -o wide` lists the models that workers have; --model takes one of those names"},
    {"EXCEEDS_EVERY_DEVICE",
     "shorten --max-seq-len, lower --batch-size or --rank, or add a larger worker; `longhaul estimate` tells what "
     "fits"},
    {"BLOB_MISSING", "submit again: the dataset is uploaded first"},
    {"AMBIGUOUS_ID", "give more characters of the id"},
    {"INTERRUPTED", "run the command again"},
    {"WAIT_TIMEOUT", "wait again with a longer --timeout, or see what it does: longhaul get, longhaul watch"},
    {"DISK_FULL", "free disk space and try again"},
};

std::string HintFor(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  for (const Hint& hint : kHints) {
    if (reason == hint.reason) return hint.text;
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return "start the scheduler (longhauld --state-dir DIR), or name another with --server HOST:PORT or "
             "LONGHAUL_SERVER";
    case absl::StatusCode::kDeadlineExceeded:
      return "the scheduler may be overloaded: try again, and see its log";
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return "ask the scheduler's administrator for access";
    case absl::StatusCode::kUnimplemented:
      return "the scheduler is older than this client: `longhaul version`, then upgrade it";
    case absl::StatusCode::kAlreadyExists:
      return "use another --request-id, or submit exactly the same job";
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return "this is a bug: please report it with the scheduler's log";
    default:
      return "";
  }
}

absl::StatusCode CodeOf(const grpc::Status& status) { return static_cast<absl::StatusCode>(status.error_code()); }

}  // namespace

absl::Status FromGrpcStatus(const grpc::Status& status, const std::string& address) {
  if (status.ok()) return absl::OkStatus();
  std::string reason;
  std::vector<FieldViolation> violations;
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      google::rpc::ErrorInfo info;
      google::rpc::BadRequest bad;
      if (detail.Is<google::rpc::ErrorInfo>() && detail.UnpackTo(&info)) reason = info.reason();
      if (!detail.Is<google::rpc::BadRequest>() || !detail.UnpackTo(&bad)) continue;
      for (const auto& violation : bad.field_violations()) {
        violations.push_back({violation.field(), violation.description()});
      }
    }
  }
  std::string message = status.error_message();
  if (reason.empty() && status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    message = "the scheduler at " + address + " cannot be reached: " + message;
  } else if (reason.empty() && status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    message = "the scheduler at " + address + " did not answer in time";
  }
  return MakeError(CodeOf(status), reason, message, std::move(violations));
}

bool IsConnectionError(const absl::Status& status) { return absl::IsUnavailable(status); }

ExitCode ExitCodeFor(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  if (reason == "EXCEEDS_EVERY_DEVICE") return kJobFailed;
  if (reason == "WAIT_TIMEOUT") return kTimeout;
  if (reason == "INTERRUPTED") return kInterrupted;
  if (reason == "LOCAL_FILE") return kInternal;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kInvalid;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnreachable;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kCancelled:
      return kInterrupted;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kResourceExhausted:
      return kRefused;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kPermission;
    default:
      return kInternal;
  }
}

std::string DescribeError(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  std::string text = "longhaul: error: " + std::string(status.message());
  if (!reason.empty()) text += " [" + reason + "]";
  text += "\n";
  const std::vector<FieldViolation> violations = ErrorViolations(status);
  // A single violation is the message already.
  if (violations.size() > 1 || (violations.size() == 1 && text.find(violations[0].field) == std::string::npos)) {
    for (const FieldViolation& violation : violations) {
      text += "  " + violation.field + ": " + violation.description + "\n";
    }
  }
  if (const std::string hint = HintFor(status); !hint.empty()) text += "  what to do: " + hint + "\n";
  return text;
}

}  // namespace longhaul::cli
