#include "base/program/error_text.h"

#include <algorithm>
#include <iostream>
#include <vector>

#include "base/error.h"

namespace longhaul::program {
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
constexpr char kDamaged[] = "fetch the file again: this copy is damaged, or not what its name says";
constexpr char kTemplate[] = "correct the chat template of the model, or take data of {\"text\": ...}";
constexpr char kNoCuda[] = "run it where there is such an NVIDIA GPU, or on the CPU: leave --device out";
constexpr char kBug[] = "this is a bug: please report it with the scheduler's log";

// What to do, by reason: every reason that a person may meet, from the scheduler, the client, a daemon's start or a
// tool. RpcErrorTest.EveryReasonHasAHint holds a new reason to it.
constexpr Hint kHints[] = {
    {"INVALID_FIELD", kCorrect},
    {"INVALID_JSON", kCorrect},
    {"INVALID_RANGE", kCorrect},
    {"INVALID_PLAN", kBug},
    {"INVALID_YAML", "correct the job file: README.md shows one; its data may be named by --data"},
    {"BAD_OPTION", kCorrect},
    {"LIMIT_EXCEEDED", "ask for less at once"},
    {"MODEL_UNKNOWN",
     "`longhaul workers -o wide` lists the models that workers have; --model takes one of those names. Where there is "
     "none, start a worker: longhaul-worker --models DIR"},
    {"MODEL_UNSUPPORTED", "take a model of a supported family; README.md names them"},
    {"DEVICE_UNSUPPORTED", "take another worker: this one's device runs no such job"},
    {"WEIGHT_NOT_FINITE", "the model's file is damaged (a weight is not a number): fetch it again"},
    {"PLAN_DOES_NOT_FIT", "shorten the sequences, or lower the batch size or the rank"},
    {"EXCEEDS_EVERY_DEVICE",
     "`longhaul estimate` tells what fits where: a shorter --max-seq-len, a lower --batch-size or --rank, another "
     "--compute-type, or a larger worker"},
    {"DATASET_NOT_UPLOADED", kSubmitAgain},
    {"OPENED_SINCE", "nothing: the agent opens its session again by itself, now that it knows of that one"},
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
    {"TOO_MANY_STREAMS", "end other watches and logs of yours, or poll: longhaul get ID"},
    {"TOO_MANY_LOG_STREAMS", "end other commands that read logs, then run this one again"},
    {"TOO_MANY_FORECASTS", kAgainSoon},
    {"CANCELLED", kAgainSoon},
    {"TOO_MANY_WATCHERS", "end other watches, or poll: longhaul get ID"},
    {"TOO_MANY_JOBS", "wait for jobs to end, or cancel some: longhaul list --state queued"},
    {"TOO_MANY_OPEN_FILES", "raise the scheduler's limit of open files (ulimit -n), then run the command again"},
    {"HOST_OOM", "free memory on the machine that was asked, then run the command again"},
    {"JOB_NOT_FOUND", "`longhaul list` shows the jobs"},
    {"ATTEMPT_NOT_FOUND", "`longhaul attempts ID` lists the job's attempts"},
    {"WORKER_NOT_FOUND", kSeeWorkers},
    {"ILLEGAL_TRANSITION",
     "`longhaul get ID` shows the job's state: a paused job can be resumed, one that waits or runs paused or "
     "cancelled; one that has ended stays as it is"},
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
    {"OTHER_PROJECT",
     "leave out --project and --all-projects, or ask the scheduler's administrator for a token of that project"},
    {"NO_CREDENTIALS", "pass a token: --token-file FILE, or LONGHAUL_TOKEN"},
    {"TOKEN_INVALID", "ask the scheduler's administrator for a new one (longhauld token create)"},
    {"TOKEN_NEEDS_TLS", "give --tls-ca FILE, who signs the scheduler's certificate, or --tls"},
    {"TLS_MATERIAL", "give a certificate that is valid now and the key that belongs to it, both in PEM form"},
    {"CERTIFICATE_INVALID", "ask the scheduler's administrator for a certificate of this worker"},
    {"RATE_LIMITED", "wait a moment and run the command again"},
    {"TOO_MANY_UPLOADS", "delete jobs that nobody needs, or ask the scheduler's administrator for room"},
    {"INTERNAL", kBug},
    {"AMBIGUOUS_ID", "give more characters of the id"},
    {"INTERRUPTED", "run the command again"},
    {"WAIT_TIMEOUT", "wait again with a longer --timeout, or see what it does: longhaul get, longhaul watch"},
    {"USAGE", kCorrect},
    {"NO_CUDA_DEVICE", kNoCuda},
    {"NO_CUDA_KERNELS", kNoCuda},
    {"NO_CUDA", kNoCuda},
    {"DEVICE_MEMORY_TAKEN", "end the programs that nvidia-smi names, or take another device"},
    {"CUDA_DRIVER_TOO_OLD", "install a newer NVIDIA driver, or train on the CPU: leave --device out"},
    {"CUDA_DEVICE_TOO_OLD", kNoCuda},
    {"CUDA_LIBRARY_MISSING", "install the library, or give the folder that has it in LD_LIBRARY_PATH"},
    {"PORT_TAKEN",
     "end the program that listens there (`ss -ltnp` names it), or listen elsewhere: --listen is for gRPC, "
     "--http-listen for the page"},
    {"CANNOT_LISTEN", "give an address of this machine: --listen for gRPC, --http-listen for the page"},
    {"BAD_ADDRESS", kCorrect},
    {"TLS_REQUIRED", "give --tls-cert and --tls-key, or listen on 127.0.0.1"},
    {"LOCKED", "end that process, or give this one a --state-dir of its own"},
    {"NO_DATABASE", "name the scheduler's state folder with --state-dir: the one that longhauld was started with"},
    {"BAD_DESTINATION", "give an empty or a new folder, or one with an earlier backup of this state"},
    {"NOT_OURS", "give longhauld a --state-dir of its own"},
    {"SCHEMA_TOO_NEW", "start a longhauld as new as the one that wrote this state, or restore a backup from before it"},
    {"SCHEMA_TOO_OLD", "start longhauld on this state folder once: it brings the state up to date"},
    {"SCHEMA_MISMATCH", "use the longhauld that runs on this state folder, or start this one on it once"},
    {"TOO_MANY_TOKENS", "revoke tokens that nobody uses: longhauld token list, longhauld token revoke"},
    {"TOKEN_NOT_FOUND", "`longhauld token list` shows the tokens"},
    {"FILE_EXISTS", "name another file, or move that one away"},
    {"FILE_TOO_LARGE", "see that it is the file that was meant"},
    {"FILE_TOO_SHORT", kDamaged},
    {"FILE_TRUNCATED", kDamaged},
    {"FILE_INVALID", kDamaged},
    {"TENSOR_INVALID", kDamaged},
    {"TENSOR_UNKNOWN", kDamaged},
    {"INVALID_MODEL",
     "give a .gguf file, or a folder with config.json, tokenizer.json and .safetensors files; one that is damaged is "
     "to be "
     "fetched again"},
    {"MODEL_TWICE", "give each model once, or rename one: workers know models by their names"},
    {"MODEL_CHANGED", "run it again once the model's files are written"},
    {"NO_CHAT_TEMPLATE", "take data of {\"text\": ...}, or a model that was made for chats"},
    {"TEMPLATE_UNSUPPORTED", kTemplate},
    {"TEMPLATE_UNTRACEABLE", kTemplate},
    {"TEMPLATE_ERROR", kTemplate},
    {"TEMPLATE_LIMIT", kTemplate},
    {"TEXT_TOO_LONG", "shorten that text, or split it into several examples"},
    {"NOT_UTF8", "save the file as UTF-8"},
    {"INVALID_DATASET", "correct the lines, and look at the result before submitting it: longhaul data preview"},
    {"INVALID_ADAPTER", "give the folder that `longhaul download` made, and the model that the adapter was trained on"},
    {"FOLDER_NOT_EMPTY", "name a folder that is empty or does not exist"},
    {"TOOL_MISSING", "install the package longhaul-worker on this machine, or run the command on a worker"},
    {"LOCAL_FILE", "see that the path is right, readable, and on a disk with room"},
    {"NO_ARTIFACT", "download once the job has SUCCEEDED: longhaul wait ID"},
    {"BAD_FILE_NAME", kBug},
    {"WRONG_CONTENT", "run the command again; if it stays so, the scheduler's copy is damaged: see its disk"},
};

}  // namespace

absl::Status LocalFileError(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  for (const char* of_the_file_system : {"FILE_NOT_FOUND", "PERMISSION_DENIED", "FILE_EXISTS", "IO_ERROR", "DISK_FULL",
                                         "TOO_MANY_OPEN_FILES", "FILE_TOO_LARGE"}) {
    if (reason != of_the_file_system) continue;
    const absl::Status local = MakeError(status.code(), "LOCAL_FILE", std::string(status.message()));
    if (reason == "DISK_FULL") return WithAdvice(local, "free disk space and try again");
    if (reason == "TOO_MANY_OPEN_FILES") return WithAdvice(local, "raise the limit of open files: ulimit -n");
    if (reason == "FILE_TOO_LARGE") return WithAdvice(local, "see that it is the file that was meant");
    return WithAdvice(local, ErrorAdvice(status));
  }
  return status;
}

std::string WhatToDo(const absl::Status& status) {
  if (std::string advice = ErrorAdvice(status); !advice.empty()) return advice;
  const std::string reason = ErrorReason(status);
  for (const Hint& hint : kHints) {
    if (reason == hint.reason) return hint.text;
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return reason.empty() ? "" : kAgainSoon;  // with a reason it has answered
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kCorrect;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return kBug;
    default:
      return "";
  }
}

bool FlushOutput(const std::string& program) {
  std::cout.flush();
  if (std::cout.good()) return true;
  std::cerr << DescribeError(program,
                             MakeError(absl::StatusCode::kInternal, "LOCAL_FILE", "cannot write standard output"), "");
  return false;
}

ExitCode ExitCodeFor(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  if (reason == "EXCEEDS_EVERY_DEVICE") return kJobFailed;
  if (reason == "WAIT_TIMEOUT") return kTimeout;
  if (reason == "INTERRUPTED") return kInterrupted;
  if (reason == "LOCAL_FILE") return kInternal;
  if (reason == "MODEL_UNSUPPORTED" || reason == "TOKEN_NEEDS_TLS" || reason == "NO_CHAT_TEMPLATE") return kInvalid;
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

namespace {

std::string Headline(const std::string& program, const absl::Status& status, const std::string& message) {
  const std::string reason = ErrorReason(status);
  return program + ": error: " + message + (reason.empty() ? "" : " [" + reason + "]");
}

std::string AdviceOr(const absl::Status& status, const std::string& fallback) {
  const std::string known = WhatToDo(status);
  return known.empty() ? fallback : known;
}

}  // namespace

std::string DescribeErrorInLine(const std::string& program, const absl::Status& status, const std::string& fallback) {
  std::string message(status.message());
  std::replace(message.begin(), message.end(), '\n', ' ');
  return Headline(program, status, message) + "; what to do: " + AdviceOr(status, fallback) + "\n";
}

std::string DescribeError(const std::string& program, const absl::Status& status, const std::string& fallback) {
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
  std::string text = Headline(program, status, message) + "\n";
  for (const FieldViolation& violation : violations) {
    text += "  " + violation.field + ": " + violation.description + "\n";
  }
  return text + "  what to do: " + AdviceOr(status, fallback) + "\n";
}

}  // namespace longhaul::program
