#include "base/error.h"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "base/check.h"
#include "base/errno_status.h"

namespace longhaul {
namespace {

// The payload is a list of strings, each "<length in decimal>:<bytes>": the reason, then field and description of each
// violation. Lengths rather than separators, so that any text survives.
constexpr absl::string_view kTypeUrl = "type.longhaul/longhaul.ErrorDetail";
constexpr absl::string_view kAdviceUrl = "type.longhaul/longhaul.Advice";
constexpr absl::string_view kErrnoUrl = "type.longhaul/longhaul.Errno";
constexpr absl::string_view kMetadataUrl = "type.longhaul/longhaul.Metadata/";  // and the key

void AppendPart(std::string& out, const std::string& text) {
  out += std::to_string(text.size());
  out += ':';
  out += text;
}

std::optional<std::string> TakePart(std::string_view& in) {
  size_t length = 0;
  const auto [end, error] = std::from_chars(in.data(), in.data() + in.size(), length);
  if (error != std::errc{}) return std::nullopt;
  in.remove_prefix(static_cast<size_t>(end - in.data()));
  if (in.empty() || in.front() != ':') return std::nullopt;
  in.remove_prefix(1);
  if (in.size() < length) return std::nullopt;
  std::string part(in.substr(0, length));
  in.remove_prefix(length);
  return part;
}

struct Detail {
  std::string reason;
  std::vector<FieldViolation> violations;
};

Detail DetailOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kTypeUrl);
  if (!payload.has_value()) return {};
  const std::string bytes(*payload);
  std::string_view rest = bytes;
  Detail detail;
  std::optional<std::string> part = TakePart(rest);
  if (!part.has_value()) return {};
  detail.reason = *std::move(part);
  while (!rest.empty()) {
    std::optional<std::string> field = TakePart(rest);
    std::optional<std::string> description = field.has_value() ? TakePart(rest) : std::nullopt;
    if (!description.has_value()) break;
    detail.violations.push_back({*std::move(field), *std::move(description)});
  }
  return detail;
}

std::pair<absl::StatusCode, const char*> CodeOfErrno(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      return {absl::StatusCode::kResourceExhausted, "DISK_FULL"};
    case ENOENT:
      return {absl::StatusCode::kNotFound, "FILE_NOT_FOUND"};
    case EACCES:
    case EPERM:
    case EROFS:
      return {absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED"};
    case EEXIST:
      return {absl::StatusCode::kAlreadyExists, "FILE_EXISTS"};
    case EMFILE:
    case ENFILE:
      return {absl::StatusCode::kResourceExhausted, "TOO_MANY_OPEN_FILES"};
    case ENOMEM:
      return {absl::StatusCode::kResourceExhausted, "HOST_OOM"};
    case ENOTDIR:
    case EISDIR:
    case ENOTEMPTY:
    case ELOOP:
    case ENAMETOOLONG:
      return {absl::StatusCode::kFailedPrecondition, "IO_ERROR"};
    default:
      return {absl::StatusCode::kInternal, "IO_ERROR"};
  }
}

}  // namespace

absl::Status MakeError(absl::StatusCode code, const std::string& reason, const std::string& message,
                       std::vector<FieldViolation> violations) {
  LH_CHECK(code != absl::StatusCode::kOk, reason);
  std::string bytes;
  AppendPart(bytes, reason);
  for (const FieldViolation& violation : violations) {
    AppendPart(bytes, violation.field);
    AppendPart(bytes, violation.description);
  }
  absl::Status status(code, message);
  status.SetPayload(kTypeUrl, absl::Cord(std::move(bytes)));
  return status;
}

absl::Status InvalidField(const std::string& field, const std::string& description) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", field + " " + description,
                   {{field, description}});
}

std::string ErrorReason(const absl::Status& status) { return DetailOf(status).reason; }

std::vector<FieldViolation> ErrorViolations(const absl::Status& status) { return DetailOf(status).violations; }

absl::Status WithAdvice(const absl::Status& status, const std::string& advice) {
  if (status.ok()) return status;
  absl::Status advised = status;
  advised.SetPayload(kAdviceUrl, absl::Cord(advice));
  return advised;
}

std::string ErrorAdvice(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kAdviceUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status WithMetadata(const absl::Status& status, const std::string& key, const std::string& value) {
  if (status.ok()) return status;
  absl::Status told = status;
  told.SetPayload(std::string(kMetadataUrl) + key, absl::Cord(value));
  return told;
}

std::string ErrorMetadata(const absl::Status& status, const std::string& key) {
  const absl::optional<absl::Cord> payload = status.GetPayload(std::string(kMetadataUrl) + key);
  return payload.has_value() ? std::string(*payload) : std::string();
}

std::map<std::string, std::string> ErrorMetadata(const absl::Status& status) {
  std::map<std::string, std::string> all;
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    if (url.substr(0, kMetadataUrl.size()) != kMetadataUrl) return;
    all[std::string(url.substr(kMetadataUrl.size()))] = std::string(payload);
  });
  return all;
}

bool IsConnectionError(const absl::Status& status) {
  if (absl::IsUnavailable(status)) return true;
  return (absl::IsInternal(status) || absl::IsUnknown(status)) && ErrorReason(status).empty();
}

absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  if (status.ok()) return status;
  const std::string message(status.message().data(), status.message().size());
  absl::Status annotated(status.code(), prefix + ": " + message);
  status.ForEachPayload(
      [&](absl::string_view type_url, const absl::Cord& payload) { annotated.SetPayload(type_url, payload); });
  return annotated;
}

absl::Status ErrnoStatus(const std::string& action, const std::string& path, int error_number) {
  char buffer[256];
  const std::string message = "cannot " + action + " " + path + ": " + strerror_r(error_number, buffer, sizeof(buffer));
  const auto [code, reason] = CodeOfErrno(error_number);
  absl::Status status = MakeError(code, reason, message);
  status.SetPayload(kErrnoUrl, absl::Cord(std::to_string(error_number)));
  return status;
}

int ErrnoOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kErrnoUrl);
  int error_number = 0;
  return payload.has_value() && absl::SimpleAtoi(std::string(*payload), &error_number) ? error_number : 0;
}

}  // namespace longhaul
