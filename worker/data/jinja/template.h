// A chat template: the subset of Jinja that real ones use (FORMATS.md section 6), with trim_blocks and lstrip_blocks.
// A template is a program from outside: no host access; steps, depth, values and output are bounded.
// Immutable once parsed; Render is thread-safe. Source: Jinja 3.1 and the chat-template environment of Transformers.
// Tests: tests/worker/data/jinja_test.cc, jinja_golden_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/limits.h"
#include "worker/data/jinja/value.h"

namespace longhaul::data::jinja {

struct Rendered {
  std::string text;
  std::vector<std::pair<int64_t, int64_t>> generation_spans;  // bytes [begin, end) of text, in order
  int64_t steps = 0;                                          // what it took of RenderLimits
  int64_t bytes = 0;
};

struct RenderOptions {
  // Seconds since the Unix epoch for strftime_now, in UTC. Absent: strftime_now is undefined, so that a text never
  // depends on the day it was rendered.
  std::optional<int64_t> now_seconds;
  RenderLimits limits;
};

class Template {
 public:
  // INVALID_ARGUMENT (reason TEMPLATE_ERROR) names the line; UNIMPLEMENTED (TEMPLATE_UNSUPPORTED) what Longhaul lacks.
  static absl::StatusOr<Template> Parse(std::string_view source);
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  // Errors as Parse, and RESOURCE_EXHAUSTED (TEMPLATE_LIMIT). raise_exception's text is the message.
  absl::StatusOr<Rendered> Render(const std::vector<std::pair<std::string, Value>>& variables,
                                  const RenderOptions& options) const;
  bool has_generation() const;  // whether it marks what trains

 private:
  struct Tree;
  explicit Template(std::unique_ptr<const Tree> tree);
  std::unique_ptr<const Tree> tree_;
};

}  // namespace longhaul::data::jinja
