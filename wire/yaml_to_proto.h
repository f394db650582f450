// YAML tree -> proto3 JSON of a message type, checked field by field so that every error has the user's path and line.
#pragma once

#include <google/protobuf/message.h>
#include <yaml-cpp/yaml.h>

#include <string>

#include "absl/status/status.h"

namespace longhaul::wire {

// Fills `message`. Keys are field names (snake_case or the proto JSON name). null leaves a field unset.
// Errors: INVALID_ARGUMENT with one violation a fault: unknown or repeated key, wrong kind of value, number out of
// range, unknown enum value (the values are listed).
absl::Status YamlToProto(const YAML::Node& root, const std::string& origin, google::protobuf::Message* message);

// What yaml-cpp found wrong, at its line of the file `origin`.
std::string AtMark(const std::string& origin, const YAML::Exception& error);

}  // namespace longhaul::wire
