#include "worker/data/chat_template.h"

#include "base/error.h"
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

absl::Status NotPrefix(size_t message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TEMPLATE_NOT_PREFIX",
                   "the chat template renders the conversation before messages[" + std::to_string(message) +
                       "] differently once that answer follows, so what trains cannot be told; keep the answer as the "
                       "last message, or use a template with {% generation %}");
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
                                                        bool add_generation_prompt) const {
  std::vector<std::pair<std::string, jinja::Value>> variables;
  variables.emplace_back("messages", jinja::Value::FromJson(messages));
  variables.emplace_back("tools", tools.is_array() ? jinja::Value::FromJson(tools) : jinja::Value::None());
  variables.emplace_back("documents", jinja::Value::None());
  variables.emplace_back("add_generation_prompt", jinja::Value::Bool(add_generation_prompt));
  for (const auto& [name, text] : special_tokens_) variables.emplace_back(name, jinja::Value::String(text));
  return template_.Render(variables, {});
}

absl::StatusOr<std::string> ChatTemplate::Render(const Json& messages, const Json& tools,
                                                 bool add_generation_prompt) const {
  LH_ASSIGN_OR_RETURN(jinja::Rendered rendered, RenderAll(messages, tools, add_generation_prompt));
  return std::move(rendered.text);
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderForTraining(const Json& messages, const Json& tools,
                                                             const std::vector<bool>& trains) const {
  LH_ASSIGN_OR_RETURN(jinja::Rendered full, RenderAll(messages, tools, false));
  RenderedChat chat;
  size_t answer = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].value("role", std::string()) != "assistant") continue;
    const size_t index = answer++;
    if (!trains[i]) continue;
    if (template_.has_generation()) {
      if (index < full.generation_spans.size()) chat.trained.push_back(full.generation_spans[index]);
      continue;
    }
    LH_ASSIGN_OR_RETURN(const std::string through, Render(Prefix(messages, i + 1), tools, false));
    LH_ASSIGN_OR_RETURN(std::string before, Render(Prefix(messages, i), tools, true));
    if (!StartsWith(through, before)) {
      // A template without a generation prompt: the turn begins where the conversation before it ends.
      LH_ASSIGN_OR_RETURN(before, Render(Prefix(messages, i), tools, false));
    }
    if (!StartsWith(full.text, through) || !StartsWith(through, before)) return NotPrefix(i);
    chat.trained.emplace_back(static_cast<int64_t>(before.size()), static_cast<int64_t>(through.size()));
  }
  chat.text = std::move(full.text);
  return chat;
}

}  // namespace longhaul::data
