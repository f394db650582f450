// Texts and generation spans as Transformers' own chat-template environment renders them
// (tests/golden/data_templates.py).
#include <string>

#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"
#include "worker/data/jinja/template.h"

namespace longhaul::data::jinja {
namespace {

using Variables = std::vector<std::pair<std::string, Value>>;

void ExpectAsGolden(const std::string& source, const Variables& variables, const Json& golden) {
  const auto parsed = Template::Parse(source);
  const auto rendered = parsed.ok() ? parsed->Render(variables, {}) : absl::StatusOr<Rendered>(parsed.status());
  if (golden.contains("error")) {
    EXPECT_FALSE(rendered.ok()) << source << "\nrenders as " << rendered->text;
    return;
  }
  ASSERT_TRUE(rendered.ok()) << source << "\n" << rendered.status();
  EXPECT_EQ(rendered->text, golden["text"].get<std::string>()) << source;
  if (!golden.contains("spans")) return;
  Json spans = Json::array();
  for (const auto& [begin, end] : rendered->generation_spans) spans.push_back({begin, end});
  EXPECT_EQ(spans, golden["spans"]) << source;
}

TEST(JinjaGoldenTest, ChatTemplatesRenderAsInTransformers) {
  for (const Json& chat : GoldenTemplates()["chats"]) {
    SCOPED_TRACE(chat["name"].get<std::string>());
    for (const Json& golden : chat["cases"]) {
      Variables variables = {{"messages", Value::FromJson(golden["messages"])},
                             {"tools", Value::FromJson(golden["tools"])},
                             {"documents", Value::None()},
                             {"add_generation_prompt", Value::Bool(golden["prompt"].get<bool>())}};
      for (const auto& [name, text] : chat["special"].items()) variables.emplace_back(name, Value::FromJson(text));
      ExpectAsGolden(chat["template"].get<std::string>(), variables, golden);
    }
  }
}

TEST(JinjaGoldenTest, SnippetsRenderAsInJinja2) {
  const Json& golden = GoldenTemplates();
  Variables variables;
  for (const auto& [name, value] : golden["variables"].items()) variables.emplace_back(name, Value::FromJson(value));
  ASSERT_GE(golden["snippets"].size(), 50u);
  for (const Json& snippet : golden["snippets"]) {
    ExpectAsGolden(snippet["source"].get<std::string>(), variables, snippet);
  }
}

}  // namespace
}  // namespace longhaul::data::jinja
