// What a GGUF's metadata says about the model in it.
#pragma once

#include "absl/status/statusor.h"
#include "model/model_shape.h"
#include "worker/formats/gguf.h"

namespace longhaul::formats {

// Reads general.architecture and "<architecture>.*". Llama 3's RoPE scaling, which a GGUF keeps only as the divisors of
// rope_freqs.weight, is recognised from them. INVALID_ARGUMENT names the key; UNIMPLEMENTED (MODEL_UNSUPPORTED) names
// the architecture or the feature that Longhaul lacks.
absl::StatusOr<ModelShape> ModelShapeFromGguf(const GgufFile& file);

}  // namespace longhaul::formats
