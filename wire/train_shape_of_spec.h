// A job spec as the memory plan sees it. The scheduler (admission, allocation), the CLI's estimate and a trainer that
// runs alone share this one translation, so that the plan of a job is the same wherever it is asked. Pure, thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "longhaul/v1/job.pb.h"
#include "model/device_facts.h"
#include "model/train_shape.h"

namespace longhaul::wire {

// `report` is the validation's, null before it: then every document may be as long as a sequence, and the tokens are
// guessed from the dataset's bytes. A compute type left open is the fastest that `facts` has.
// REQUIRES: `resolved` is resolved (ResolveJobSpec). INVALID_ARGUMENT names the field.
absl::StatusOr<TrainShape> TrainShapeOfSpec(const v1::JobSpec& resolved, const v1::DataReport* report,
                                            const DeviceFacts& facts);

}  // namespace longhaul::wire
