#include "worker/data/chat_template.h"

#include <algorithm>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::data {
namespace {

Json Prefix(const Json& messages, size_t count) {
  Json prefix = Json::array();
  for (size_t i = 0; i < count; ++i) prefix.push_back(messages[i]);
  return prefix;
}

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

absl::Status Untraceable(const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TEMPLATE_UNTRACEABLE",
                   what + ", so what trains cannot be told; use a template with {% generation %}");
}

size_t CommonPrefix(const std::string& a, const std::string& b) {
  const size_t most = std::min(a.size(), b.size());
  size_t n = 0;
  while (n < most && a[n] == b[n]) ++n;
  return n;
}

size_t CommonSuffix(const std::string& a, const std::string& b) {
  const size_t most = std::min(a.size(), b.size());
  size_t n = 0;
  while (n < most && a[a.size() - 1 - n] == b[b.size() - 1 - n]) ++n;
  return n;
}

Json WithContent(Json messages, size_t index, const char* content) {
  messages[index]["content"] = content;
  return messages;
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Create(const Tokenizer& tokenizer) {
  if (tokenizer.chat_template().empty()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_CHAT_TEMPLATE",
                     "this model has no chat template; give the data as {\"text\": ...} lines");
  }
  LH_ASSIGN_OR_RETURN(jinja::Template parsed, jinja::Template::Parse(tokenizer.chat_template()));
  ChatTemplate chat(std::move(parsed));
  chat.special_tokens_ = tokenizer.SpecialTokenNames();
  return chat;
}

absl::StatusOr<jinja::Rendered> ChatTemplate::RenderAll(const Json& messages, const Json& tools,
                                                        bool add_generation_prompt, jinja::RenderLimits* left) const {
  std::vector<std::pair<std::string, jinja::Value>> variables;
  variables.emplace_back("messages", jinja::Value::FromJson(messages));
  variables.emplace_back("tools", tools.is_array() ? jinja::Value::FromJson(tools) : jinja::Value::None());
  variables.emplace_back("documents", jinja::Value::None());
  variables.emplace_back("add_generation_prompt", jinja::Value::Bool(add_generation_prompt));
  for (const auto& [name, text] : special_tokens_) variables.emplace_back(name, jinja::Value::String(text));
  jinja::RenderOptions options;
  options.limits.max_steps = std::min(options.limits.max_steps, left->max_steps);
  options.limits.max_bytes = std::min(options.limits.max_bytes, left->max_bytes);
  LH_ASSIGN_OR_RETURN(jinja::Rendered rendered, template_.Render(variables, options));
  left->max_steps -= rendered.steps;
  left->max_bytes -= rendered.bytes;
  return rendered;
}

absl::StatusOr<std::string> ChatTemplate::RenderText(const Json& messages, const Json& tools,
                                                     bool add_generation_prompt, jinja::RenderLimits* left) const {
  LH_ASSIGN_OR_RETURN(jinja::Rendered rendered, RenderAll(messages, tools, add_generation_prompt, left));
  return std::move(rendered.text);
}

absl::StatusOr<std::string> ChatTemplate::Render(const Json& messages, const Json& tools,
                                                 bool add_generation_prompt) const {
  jinja::RenderLimits limits;
  return RenderText(messages, tools, add_generation_prompt, &limits);
}

jinja::RenderLimits ChatTemplate::LineLimits() {
  jinja::RenderLimits line;
  line.max_steps = limits::kMaxLineRenderSteps;
  line.max_bytes = limits::kMaxLineRenderBytes;
  return line;
}

// The answer's place shows where renderings of two other answers part: their common start is what comes before it,
// their common end what follows. The turn's end, which trains with the answer, is what follows it while it is the last
// message.
absl::StatusOr<std::pair<int64_t, int64_t>> ChatTemplate::ProbeAnswer(const std::string& full, const Json& messages,
                                                                      const Json& tools, size_t index,
                                                                      jinja::RenderLimits* left) const {
  LH_ASSIGN_OR_RETURN(const std::string zero, RenderText(WithContent(messages, index, "0"), tools, false, left));
  LH_ASSIGN_OR_RETURN(const std::string one, RenderText(WithContent(messages, index, "1"), tools, false, left));
  const Json turns = Prefix(messages, index + 1);
  LH_ASSIGN_OR_RETURN(const std::string last_zero, RenderText(WithContent(turns, index, "0"), tools, false, left));
  LH_ASSIGN_OR_RETURN(const std::string last_one, RenderText(WithContent(turns, index, "1"), tools, false, left));
  const size_t before = CommonPrefix(zero, one), after = CommonSuffix(zero, one);
  const size_t turn_end = CommonSuffix(last_zero, last_one);
  const std::string tail = last_zero.substr(last_zero.size() - turn_end);
  const bool traced = before + 1 + after == zero.size() && zero.size() == one.size() &&
                      last_zero.size() == last_one.size() && before + after <= full.size() &&
                      full.compare(0, before, zero, 0, before) == 0 &&
                      full.compare(full.size() - after, after, zero, zero.size() - after, after) == 0 &&
                      full.compare(full.size() - after, turn_end, tail) == 0;
  if (!traced) {
    return Untraceable("the chat template renders messages[" + std::to_string(index) +
                       "] in a way that its place in the text cannot be followed");
  }
  return std::pair(static_cast<int64_t>(before), static_cast<int64_t>(full.size() - after + turn_end));
}

absl::StatusOr<std::pair<int64_t, int64_t>> ChatTemplate::FindAnswer(const std::string& full, const Json& messages,
                                                                     const Json& tools, size_t index,
                                                                     jinja::RenderLimits* left) const {
  // Many templates cannot render an empty conversation, and some give it another start: the first message is probed.
  if (index > 0) {
    const absl::StatusOr<std::string> before = RenderText(Prefix(messages, index), tools, true, left);
    const absl::StatusOr<std::string> through = RenderText(Prefix(messages, index + 1), tools, false, left);
    if (before.ok() && through.ok() && StartsWith(*through, *before) && StartsWith(full, *through)) {
      return std::pair(static_cast<int64_t>(before->size()), static_cast<int64_t>(through->size()));
    }
  }
  return ProbeAnswer(full, messages, tools, index, left);
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderForTraining(const Json& messages, const Json& tools,
                                                             const std::vector<bool>& trains,
                                                             const jinja::RenderLimits& limits) const {
  jinja::RenderLimits left = limits;
  absl::StatusOr<RenderedChat> chat = Trace(messages, tools, trains, &left);
  if (ErrorReason(chat.status()) != "TEMPLATE_LIMIT") return chat;
  return Annotate(chat.status(), "the conversation takes more to render than a line may: shorten or split it");
}

absl::StatusOr<RenderedChat> ChatTemplate::Trace(const Json& messages, const Json& tools,
                                                 const std::vector<bool>& trains, jinja::RenderLimits* left) const {
  LH_ASSIGN_OR_RETURN(jinja::Rendered full, RenderAll(messages, tools, false, left));
  std::vector<size_t> answers;
  bool all_train = true;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].value("role", std::string()) != "assistant") continue;
    answers.push_back(i);
    all_train &= trains[i];
  }
  RenderedChat chat;
  if (template_.has_generation() && all_train) {
    chat.trained = std::move(full.generation_spans);
  } else if (template_.has_generation()) {
    if (full.generation_spans.size() != answers.size()) {
      return Untraceable("the chat template marks " + std::to_string(full.generation_spans.size()) + " parts for " +
                         std::to_string(answers.size()) + " answers of which not all train");
    }
    for (size_t k = 0; k < answers.size(); ++k) {
      if (trains[answers[k]]) chat.trained.push_back(full.generation_spans[k]);
    }
  } else {
    for (size_t i : answers) {
      if (!trains[i]) continue;
      LH_ASSIGN_OR_RETURN(const auto span, FindAnswer(full.text, messages, tools, i, left));
      chat.trained.push_back(span);
    }
  }
  chat.text = std::move(full.text);
  return chat;
}

}  // namespace longhaul::data
