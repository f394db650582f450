// Rotary position embedding: the facts of a model's frequencies, and the numbers that follow from them.
// Source: Transformers' rope_type of the same names; "llama3" as published with Llama 3.1, "yarn" by
// https://arxiv.org/abs/2309.00071, "longrope" by https://arxiv.org/abs/2402.13753.
//
// Two of them ask how long sequences are: "dynamic" for how much theta grows, "longrope" for which of two lists divides
// the frequencies. Transformers takes the longest sequence that it has seen so far, so that a row's result depends on
// what came before it. Here it is the longest document that a run's plan allows, from its first step to its last.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace longhaul {

inline constexpr double kMaxRopeFactor = 1e6;  // of a scaling: factor, betas, attention

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn, kDynamic, kLongRope };

// The names of the values of RopeScaling, in their order: "none", "linear", "llama3", "yarn", "dynamic", "longrope".
const std::vector<std::string>& RopeScalingNames();

struct RopeFacts {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                              // of every scaling
  double low_freq_factor = 1.0;                     // llama3
  double high_freq_factor = 4.0;                    // llama3
  int64_t original_max_position_embeddings = 8192;  // llama3, yarn, dynamic, longrope
  double beta_fast = 32.0;        // yarn: turns within the original context from which a frequency stays as it is
  double beta_slow = 1.0;         // yarn: turns below which it is divided by the factor; between them a ramp
  double attention_factor = 1.0;  // yarn, longrope: of cos and sin, so that q and k together grow by its square
  bool truncate = true;           // yarn: the ramp begins and ends at whole elements
  // longrope: what frequencies are divided by, head_dim / 2 each; the first up to the original context, else the
  // second.
  std::vector<double> short_factor = {}, long_factor = {};
};

// What yarn's paper gives cos and sin where a model says nothing else: 1 + 0.1 scale ln(factor).
double YarnAttentionFactor(double factor, double scale = 1.0);

// What longrope's paper gives them: sqrt(1 + ln(factor) / ln(original)), 1 where nothing is extended.
double LongRopeAttentionFactor(double factor, int64_t original_max_position_embeddings);

// How many positions a model is good for whose facts say yarn or dynamic: the factor times its original context.
int64_t ExtendedPositions(const RopeFacts& rope);

// Every limit of the facts that its scaling uses; the message names the field, its value and the limit.
absl::Status ValidateRope(const RopeFacts& rope, int64_t head_dim);

// The inverse frequencies in double, head_dim / 2 of them, with the scaling applied. `length`: of the longest document,
// in tokens; only dynamic and longrope heed it.
// REQUIRES: ValidateRope.
void RopeInverseFrequencies(const RopeFacts& rope, int64_t head_dim, int64_t length, double* out);

// What cos and sin are multiplied by.
double RopeAttentionFactor(const RopeFacts& rope);

}  // namespace longhaul
