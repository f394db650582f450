// The names of the protocol's enums as people write and read them: lower_case and without the type's prefix, so
// LEARNING_RATE_SCHEDULE_COSINE is "cosine" and QUEUED is "queued". Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/generated_enum_reflection.h"

namespace longhaul::wire {

// "unknown (17)" for a number that the enum lacks; "" for the value 0 (UNSPECIFIED).
std::string EnumName(const google::protobuf::EnumDescriptor& type, int number);

// Accepts "cosine", "COSINE" and the full name. INVALID_ARGUMENT names `field`, the nearest name and all that exist.
absl::StatusOr<int> ParseEnumName(const google::protobuf::EnumDescriptor& type, std::string_view text,
                                  const std::string& field);

// All names of the enum but the unspecified one: "linear, cosine, constant".
std::string EnumNames(const google::protobuf::EnumDescriptor& type);

template <typename Enum>
std::string EnumName(Enum value) {
  return EnumName(*google::protobuf::GetEnumDescriptor<Enum>(), static_cast<int>(value));
}

}  // namespace longhaul::wire
