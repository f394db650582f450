#include "clients/cli/rpc_error.h"

#include <grpcpp/support/status.h>

#include <vector>

#include "base/error.h"
#include "clients/channel/channel.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace longhaul::cli {
namespace {

constexpr char kStartIt[] =
    "start the scheduler (longhauld --state-dir DIR), or name another with --server HOST:PORT or LONGHAUL_SERVER";

absl::Status Unreachable(const std::string& address, const std::string& words) {
  const channel::NoConnection why = channel::ExplainNoConnection("--server HOST:PORT or LONGHAUL_SERVER", words);
  const absl::Status status =
      absl::UnavailableError("the scheduler at " + address + " cannot be reached: " + std::string(why.what));
  return WithAdvice(status, why.advice.empty() ? kStartIt : why.advice);
}

}  // namespace

std::string HintFor(const absl::Status& status) {
  if (std::string known = program::WhatToDo(status); !known.empty()) return known;
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return kStartIt;
    case absl::StatusCode::kDeadlineExceeded:
      return "the scheduler may be overloaded: try again, and see its log";
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return "ask the scheduler's administrator for access";
    case absl::StatusCode::kUnimplemented:
      return "the scheduler is older than this client: `longhaul version`, then upgrade it";
    case absl::StatusCode::kAlreadyExists:
      return "use another --request-id, or submit exactly the same job";
    case absl::StatusCode::kNotFound:
      return "`longhaul list` shows the jobs, `longhaul workers` the workers";
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
  if (reason.empty() && status.error_code() == grpc::StatusCode::UNAVAILABLE) return Unreachable(address, message);
  if (reason.empty() && status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    message = "the scheduler at " + address + " did not answer in time";
  }
  return MakeError(CodeOf(status), reason, message, std::move(violations));
}

std::string DescribeError(const absl::Status& status) {
  return program::DescribeError("longhaul", status, HintFor(status));
}

}  // namespace longhaul::cli
