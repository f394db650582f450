#include "worker/data/chat_template.h"

#include <algorithm>

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

// The answer's place shows where renderings of two other answers part: their common start is what comes before it,
// their common end what follows. The turn's end, which trains with the answer, is what follows it while it is the last
// message.
absl::StatusOr<std::pair<int64_t, int64_t>> ChatTemplate::ProbeAnswer(const std::string& full, const Json& messages,
                                                                      const Json& tools, size_t index) const {
  LH_ASSIGN_OR_RETURN(const std::string zero, Render(WithContent(messages, index, "0"), tools, false));
  LH_ASSIGN_OR_RETURN(const std::string one, Render(WithContent(messages, index, "1"), tools, false));
  const Json turns = Prefix(messages, index + 1);
  LH_ASSIGN_OR_RETURN(const std::string last_zero, Render(WithContent(turns, index, "0"), tools, false));
  LH_ASSIGN_OR_RETURN(const std::string last_one, Render(WithContent(turns, index, "1"), tools, false));
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
                                                                     const Json& tools, size_t index) const {
  // Many templates cannot render an empty conversation, and some give it another start: the first message is probed.
  if (index > 0) {
    const absl::StatusOr<std::string> before = Render(Prefix(messages, index), tools, true);
    const absl::StatusOr<std::string> through = Render(Prefix(messages, index + 1), tools, false);
    if (before.ok() && through.ok() && StartsWith(*through, *before) && StartsWith(full, *through)) {
      return std::pair(static_cast<int64_t>(before->size()), static_cast<int64_t>(through->size()));
    }
  }
  return ProbeAnswer(full, messages, tools, index);
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderForTraining(const Json& messages, const Json& tools,
                                                             const std::vector<bool>& trains) const {
  LH_ASSIGN_OR_RETURN(jinja::Rendered full, RenderAll(messages, tools, false));
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
      LH_ASSIGN_OR_RETURN(const auto span, FindAnswer(full.text, messages, tools, i));
      chat.trained.push_back(span);
    }
  }
  chat.text = std::move(full.text);
  return chat;
}

}  // namespace longhaul::data
