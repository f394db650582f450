#include "server/rpc/status.h"

#include <string>
#include <system_error>
#include <vector>

#include "base/errno_status.h"
#include "base/error.h"
#include "base/limits.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace longhaul::server {
namespace {

// What a byte of grpc-message takes on the wire: printable ASCII goes as it is, the rest as %XX.
int64_t WireBytes(unsigned char byte) { return byte >= 0x20 && byte <= 0x7E && byte != '%' ? 1 : 3; }

bool IsUtf8Continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

std::string CutToWireBytes(const std::string& message, int64_t most) {
  int64_t taken = 0;
  for (size_t i = 0; i < message.size(); ++i) {
    taken += WireBytes(static_cast<unsigned char>(message[i]));
    if (taken <= most) continue;
    while (i > 0 && IsUtf8Continuation(message[i])) --i;
    return message.substr(0, i) + " ...";
  }
  return message;
}

google::rpc::BadRequest BadRequestOf(const std::vector<FieldViolation>& violations, int64_t most_bytes) {
  google::rpc::BadRequest bad_request;
  for (size_t i = 0; i < violations.size(); ++i) {
    auto* violation = bad_request.add_field_violations();
    violation->set_field(violations[i].field);
    violation->set_description(CutToWireBytes(violations[i].description, limits::kMaxErrorMessageBytes / 2));
    if (static_cast<int64_t>(bad_request.ByteSizeLong()) <= most_bytes) continue;
    violation->set_field("");
    violation->set_description("and " + std::to_string(violations.size() - i) + " more");
    break;
  }
  return bad_request;
}

}  // namespace

absl::Status HideOwnFiles(const absl::Status& status) {
  const int error_number = ErrnoOf(status);
  if (error_number == 0) return status;
  const std::string told = "the scheduler's state folder: " + std::generic_category().message(error_number);
  // Of what has run out the code and the reason stay: DISK_FULL, TOO_MANY_OPEN_FILES, HOST_OOM.
  if (absl::IsResourceExhausted(status)) return MakeError(status.code(), ErrorReason(status), told);
  return MakeError(absl::StatusCode::kUnavailable, "STORE_IO", told);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = CutToWireBytes(std::string(status.message()), limits::kMaxErrorMessageBytes);

  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(message);
  google::rpc::ErrorInfo info;
  const std::string reason = ErrorReason(status);
  info.set_reason(reason.empty() ? absl::StatusCodeToString(status.code()) : reason);
  info.set_domain(kErrorDomain);
  for (const auto& [key, value] : ErrorMetadata(status)) (*info.mutable_metadata())[key] = value;
  details.add_details()->PackFrom(info);
  if (const std::vector<FieldViolation> violations = ErrorViolations(status); !violations.empty()) {
    const int64_t room = limits::kMaxErrorDetailBytes - static_cast<int64_t>(details.ByteSizeLong());
    details.add_details()->PackFrom(BadRequestOf(violations, room));
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()), message, details.SerializeAsString());
}

}  // namespace longhaul::server
