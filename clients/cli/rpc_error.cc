#include "clients/cli/rpc_error.h"

#include <grpcpp/support/status.h>

#include <algorithm>
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

constexpr char kCorrect[] = "correct the value and run the command again; --help of the command lists the flags";
constexpr char kSubmitAgain[] = "submit again: the dataset is uploaded first";
constexpr char kAgainSoon[] = "the scheduler is there but cannot do it now: run the command again in a moment";
constexpr char kSeeWorkers[] = "`longhaul workers` lists the workers";
constexpr char kStoreTrouble[] = "see the scheduler's log and its state folder's disk, then run the command again";
constexpr char kBug[] = "this is a bug: please report it with the scheduler's log";

// What to do, by reason: every reason that the scheduler gives a client, and the client's own.
constexpr Hint kHints[] = {
    {"INVALID_FIELD", kCorrect},
    {"INVALID_JSON", kCorrect},
    {"INVALID_RANGE", kCorrect},
    {"INVALID_PLAN", kBug},
    {"INVALID_YAML", "correct the job file: README.md shows one; its data may be named by --data"},
    {"BAD_OPTION", kCorrect},
    {"LIMIT_EXCEEDED", "ask for less at once"},
    {"MODEL_UNKNOWN",
     "`longhaul workers -o wide` lists the models that workers have; --model takes one of those names"},
    {"MODEL_UNSUPPORTED", "take a model of a supported family; README.md names them"},
    {"DEVICE_UNSUPPORTED", "take another worker: this one's device runs no such job"},
    {"WEIGHT_NOT_FINITE", "the model's file is damaged (a weight is not a number): fetch it again"},
    {"PLAN_DOES_NOT_FIT", "shorten --max-seq-len, or lower --batch-size or --rank"},
    {"EXCEEDS_EVERY_DEVICE",
     "shorten --max-seq-len, lower --batch-size or --rank, or add a larger worker; `longhaul estimate` tells what "
     "fits"},
    {"DATASET_NOT_UPLOADED", kSubmitAgain},
    {"BLOB_MISSING", kSubmitAgain},
    {"BLOB_GONE", kSubmitAgain},
    {"BLOB_NOT_FOUND", "the scheduler has no such file any more: `longhaul get ID` shows what the job has"},
    {"BLOB_BUSY", "wait for the other upload of the same data to end, then run the command again"},
    {"BLOB_NAME", kBug},
    {"BLOB_OFFSET", "run the command again: it asks where to go on"},
    {"BLOB_SIZE_MISMATCH", "the file changed while it was sent: run the command again"},
    {"BLOB_HASH_MISMATCH", "the file changed while it was sent: run the command again"},
    {"BLOB_TRUNCATED", "the scheduler's copy is damaged: see its disk, and restore the blob from a backup"},
    {"TOO_MANY_TRANSFERS", kAgainSoon},
    {"TOO_MANY_WATCHERS", "end other watches, or poll: longhaul get ID"},
    {"TOO_MANY_JOBS", "wait for jobs to end, or cancel some: longhaul list --state queued"},
    {"TOO_MANY_OPEN_FILES", "raise the scheduler's limit of open files (ulimit -n), then run the command again"},
    {"OUT_OF_MEMORY", kAgainSoon},
    {"JOB_NOT_FOUND", "`longhaul list` shows the jobs"},
    {"ATTEMPT_NOT_FOUND", "`longhaul attempts ID` lists the job's attempts"},
    {"WORKER_NOT_FOUND", kSeeWorkers},
    {"ILLEGAL_TRANSITION", "`longhaul get ID` shows the job's state; a job that has ended stays as it is"},
    {"REQUEST_ID_REUSED", "use another --request-id, or submit exactly the same job"},
    {"EVENTS_COMPACTED", "watch without --after-sequence"},
    {"DISK_FULL", "free disk space and try again"},
    {"SHUTTING_DOWN", kAgainSoon},
    {"STORE_UNAVAILABLE", kStoreTrouble},
    {"STORE_BUSY", kAgainSoon},
    {"STORE_IO", kStoreTrouble},
    {"STORE_ERROR", kStoreTrouble},
    {"STORE_CONSTRAINT", kBug},
    {"STORE_CORRUPT", "stop the scheduler and restore its state folder from a backup"},
    {"CORRUPT_RECORD", "stop the scheduler and restore its state folder from a backup"},
    {"SEQUENCE_NOT_DENSE", kBug},
    {"IO_ERROR", kStoreTrouble},
    {"FILE_NOT_FOUND", "name a file that exists"},
    {"PERMISSION_DENIED", "ask the scheduler's administrator for access"},
    {"SCOPE_MISSING", "ask the scheduler's administrator for a token with that scope"},
    {"OTHER_PROJECT", "name your own project with --project, or ask the scheduler's administrator for access"},
    {"NO_CREDENTIALS", "pass a token: --token-file FILE, or LONGHAUL_TOKEN"},
    {"TOKEN_INVALID", "ask the scheduler's administrator for a new one (longhauld token create)"},
    {"TOKEN_NEEDS_TLS", "give --tls-ca FILE, who signs the scheduler's certificate, or --tls"},
    {"TLS_MATERIAL", "give a certificate and the key that belongs to it, both in PEM form"},
    {"CERTIFICATE_INVALID", "ask the scheduler's administrator for a certificate of this worker"},
    {"RATE_LIMITED", "wait a moment and run the command again"},
    {"TOO_MANY_UPLOADS", "delete jobs that nobody needs, or ask the scheduler's administrator for room"},
    {"INTERNAL", kBug},
    {"AMBIGUOUS_ID", "give more characters of the id"},
    {"INTERRUPTED", "run the command again"},
    {"WAIT_TIMEOUT", "wait again with a longer --timeout, or see what it does: longhaul get, longhaul watch"},
    {"LOCAL_FILE", "see that the path is right, readable, and on a disk with room"},
    {"NO_ARTIFACT", "download once the job has SUCCEEDED: longhaul wait ID"},
    {"BAD_FILE_NAME", kBug},
    {"WRONG_CONTENT", "run the command again; if it stays so, the scheduler's copy is damaged: see its disk"},
};

}  // namespace

std::string HintFor(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  for (const Hint& hint : kHints) {
    if (reason == hint.reason) return hint.text;
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      if (!reason.empty()) return kAgainSoon;  // the scheduler has answered
      return "start the scheduler (longhauld --state-dir DIR), or name another with --server HOST:PORT or "
             "LONGHAUL_SERVER; where it speaks TLS, give --tls-ca FILE, and --tls-server-name "
             "NAME where its certificate has another name";
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
      return kBug;
    case absl::StatusCode::kNotFound:
      return "`longhaul list` shows the jobs, `longhaul workers` the workers";
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kCorrect;
    default:
      return "`longhaul get ID` shows where the job stands";
  }
}

namespace {

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
  std::string message(status.message());
  std::vector<FieldViolation> violations = ErrorViolations(status);
  // A message that has the violations one behind the other is cut before the first: each gets its line, and no words
  // come twice. A single one is the message already.
  size_t first = std::string::npos;
  bool all_told = true;
  for (const FieldViolation& violation : violations) {
    const size_t at = message.find(violation.description);
    all_told = all_told && at != std::string::npos;
    first = std::min({first, at, message.find(violation.field + " " + violation.description)});
  }
  if (violations.size() == 1 && (all_told || message.find(violations[0].field) != std::string::npos)) {
    violations.clear();
  } else if (violations.size() > 1 && all_told) {
    message.resize(first);
    while (!message.empty() && (message.back() == ' ' || message.back() == ';' || message.back() == ':')) {
      message.pop_back();
    }
    if (message.empty()) message = std::to_string(violations.size()) + " values are wrong";
  }
  std::string text = "longhaul: error: " + message;
  if (!reason.empty()) text += " [" + reason + "]";
  text += "\n";
  for (const FieldViolation& violation : violations) {
    text += "  " + violation.field + ": " + violation.description + "\n";
  }
  return text + "  what to do: " + HintFor(status) + "\n";
}

}  // namespace longhaul::cli
