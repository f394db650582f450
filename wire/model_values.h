// The protocol's messages <-> the values of model/. ToProto is total; FromProto checks what it reads: INVALID_ARGUMENT
// names the field. Pure, thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "longhaul/v1/plan.pb.h"
#include "model/device_facts.h"
#include "model/model_shape.h"

namespace longhaul::wire {

v1::RopeFacts ToProto(const RopeFacts& rope);
v1::ModelShape ToProto(const ModelShape& shape);
v1::DeviceFacts ToProto(const DeviceFacts& facts);

absl::StatusOr<RopeFacts> FromProto(const v1::RopeFacts& rope);
// Also ValidateModelShape.
absl::StatusOr<ModelShape> FromProto(const v1::ModelShape& shape);
// Also ValidateDeviceFacts.
absl::StatusOr<DeviceFacts> FromProto(const v1::DeviceFacts& facts);

}  // namespace longhaul::wire
