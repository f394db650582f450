// Rotary position embedding: the facts of a model's frequencies, and the numbers that follow from them.
// Source: Transformers' rope_type of the same names; "llama3" as published with Llama 3.1, "yarn" by
// https://arxiv.org/abs/2309.00071.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace longhaul {

inline constexpr double kMaxRopeFactor = 1e6;  // of a scaling: factor, betas, attention

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn };

// The names of the values of RopeScaling, in their order: "none", "linear", "llama3", "yarn".
const std::vector<std::string>& RopeScalingNames();

struct RopeFacts {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                              // of every scaling
  double low_freq_factor = 1.0;                     // llama3
  double high_freq_factor = 4.0;                    // llama3
  int64_t original_max_position_embeddings = 8192;  // llama3, yarn
  double beta_fast = 32.0;        // yarn: turns within the original context from which a frequency stays as it is
  double beta_slow = 1.0;         // yarn: turns below which it is divided by the factor; between them a ramp
  double attention_factor = 1.0;  // yarn: of cos and sin, so that q and k together grow by its square
  bool truncate = true;           // yarn: the ramp begins and ends at whole elements
};

// What yarn's paper gives cos and sin where a model says nothing else: 1 + 0.1 scale ln(factor).
double YarnAttentionFactor(double factor, double scale = 1.0);

// How many positions a model is good for whose facts say yarn: the factor times its original context.
int64_t YarnPositions(const RopeFacts& rope);

// Every limit of the facts that its scaling uses; the message names the field, its value and the limit.
absl::Status ValidateRope(const RopeFacts& rope);

// The inverse frequencies in double, head_dim / 2 of them, with the scaling applied.
// REQUIRES: ValidateRope.
void RopeInverseFrequencies(const RopeFacts& rope, int64_t head_dim, double* out);

}  // namespace longhaul
