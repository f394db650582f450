// What one rendering may use. A template is a program from outside: it gets no host access, and these bounds.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "base/limits.h"

namespace longhaul::data::jinja {

struct RenderLimits {
  int64_t max_steps = limits::kMaxTemplateSteps;
  int64_t max_bytes = limits::kMaxTemplateOutputBytes;  // of output and, apart from it, of all values ever built
  int max_frames = limits::kMaxTemplateFrames;          // nested evaluations
};

// Counts down what a rendering uses. RESOURCE_EXHAUSTED (reason TEMPLATE_LIMIT) names the limit. Not thread-safe.
class Budget {
 public:
  explicit Budget(const RenderLimits& bounds) : limits_(bounds) {}
  absl::Status Step(int64_t steps = 1);
  // Charges bytes of new values, and a step for each 64 of them.
  absl::Status Bytes(int64_t bytes);
  const RenderLimits& limits() const { return limits_; }
  int64_t steps() const { return steps_; }
  int64_t bytes() const { return bytes_; }

 private:
  RenderLimits limits_;
  int64_t steps_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace longhaul::data::jinja
