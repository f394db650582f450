// A conversation as the model reads it, and which bytes of it train.
//
// A template that marks generation itself ({% generation %}) says which bytes train. For any other, an assistant turn
// trains from where the prompt for it ends (the conversation before it, rendered with add_generation_prompt) to where
// the conversation up to and with it ends: found by rendering, never by searching the text.
// Immutable; thread-safe. Tests: tests/worker/data/chat_template_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/template.h"
#include "worker/data/json.h"
#include "worker/data/tokenizer.h"

namespace longhaul::data {

struct RenderedChat {
  std::string text;
  std::vector<std::pair<int64_t, int64_t>> trained;  // bytes [begin, end) of text, ascending, disjoint
};

class ChatTemplate {
 public:
  // FAILED_PRECONDITION (reason NO_CHAT_TEMPLATE) where the tokenizer has none; else as jinja::Template::Parse.
  static absl::StatusOr<ChatTemplate> Create(const Tokenizer& tokenizer);

  // messages: an array of {role, content, ...}; tools: an array or null.
  absl::StatusOr<std::string> Render(const Json& messages, const Json& tools, bool add_generation_prompt) const;

  // trains[i]: whether message i trains; only assistant messages may. INVALID_ARGUMENT (reason TEMPLATE_UNTRACEABLE)
  // where the place of an answer in the text cannot be followed. RESOURCE_EXHAUSTED (TEMPLATE_LIMIT) where the whole
  // and the renderings that find the answers take more than `limits` together.
  absl::StatusOr<RenderedChat> RenderForTraining(const Json& messages, const Json& tools,
                                                 const std::vector<bool>& trains,
                                                 const jinja::RenderLimits& limits = LineLimits()) const;
  static jinja::RenderLimits LineLimits();

 private:
  explicit ChatTemplate(jinja::Template parsed) : template_(std::move(parsed)) {}
  // Takes what it uses from `left`.
  absl::StatusOr<jinja::Rendered> RenderAll(const Json& messages, const Json& tools, bool add_generation_prompt,
                                            jinja::RenderLimits* left) const;
  absl::StatusOr<std::string> RenderText(const Json& messages, const Json& tools, bool add_generation_prompt,
                                         jinja::RenderLimits* left) const;
  absl::StatusOr<RenderedChat> Trace(const Json& messages, const Json& tools, const std::vector<bool>& trains,
                                     jinja::RenderLimits* left) const;
  // Bytes of answer `index`, through its end of turn, in `full`, the whole conversation's text.
  absl::StatusOr<std::pair<int64_t, int64_t>> FindAnswer(const std::string& full, const Json& messages,
                                                         const Json& tools, size_t index,
                                                         jinja::RenderLimits* left) const;
  absl::StatusOr<std::pair<int64_t, int64_t>> ProbeAnswer(const std::string& full, const Json& messages,
                                                          const Json& tools, size_t index,
                                                          jinja::RenderLimits* left) const;

  jinja::Template template_;
  std::vector<std::pair<std::string, std::string>> special_tokens_;
};

}  // namespace longhaul::data
