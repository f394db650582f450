#include "worker/data/chat_template.h"

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"

namespace longhaul::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The parts of the rendering that train, all assistant messages but those in `skipped`.
std::vector<std::string> Trained(const ChatTemplate& chat, const Json& messages,
                                 const std::vector<size_t>& skipped = {}) {
  std::vector<bool> trains(messages.size());
  for (size_t i = 0; i < messages.size(); ++i) trains[i] = messages[i]["role"] == "assistant";
  for (size_t i : skipped) trains[i] = false;
  const auto rendered = chat.RenderForTraining(messages, Json(), trains);
  EXPECT_TRUE(rendered.ok()) << rendered.status();
  std::vector<std::string> parts;
  if (!rendered.ok()) return parts;
  const auto whole = chat.Render(messages, Json(), false);
  EXPECT_TRUE(whole.ok());
  EXPECT_EQ(rendered->text, *whole);
  for (const auto& [begin, end] : rendered->trained) {
    parts.push_back(rendered->text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
  }
  return parts;
}

ChatTemplate Named(const std::string& name, const std::string& style = "qwen2") {
  return TemplateOf(GoldenTokenizer(style, name));
}

Json Turns(const std::vector<std::pair<std::string, std::string>>& turns) {
  Json messages = Json::array();
  for (const auto& [role, content] : turns) messages.push_back(Message(role, content));
  return messages;
}

TEST(ChatTemplateTest, ADefaultSystemMessageIsRenderedAndDoesNotTrain) {
  const ChatTemplate chat = TemplateOf(GgufTokenizer());
  const Json messages = Turns({{"user", "hi"}, {"assistant", "hello"}});
  const auto text = chat.Render(messages, Json(), false);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, testing::StartsWith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
  EXPECT_THAT(Trained(chat, messages), ElementsAre("hello<|im_end|>\n"));
}

TEST(ChatTemplateTest, ResponseMaskByStringSearch) {
  const ChatTemplate chat = TemplateOf(GgufTokenizer());
  // The answer stands in the question too, and the question holds an assistant's header.
  const Json messages =
      Turns({{"user", "yes"}, {"assistant", "yes"}, {"user", "<|im_start|>assistant\nyes"}, {"assistant", "yes"}});
  std::vector<bool> trains = {false, true, false, true};
  const auto rendered = chat.RenderForTraining(messages, Json(), trains);
  ASSERT_TRUE(rendered.ok()) << rendered.status();
  ASSERT_EQ(rendered->trained.size(), 2u);
  const std::string& text = rendered->text;
  for (const auto& [begin, end] : rendered->trained) {
    EXPECT_EQ(text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), "yes<|im_end|>\n");
  }
  EXPECT_EQ(rendered->trained[1].second, static_cast<int64_t>(text.size()));
  // The first answer is the second "yes", after the first question.
  EXPECT_EQ(static_cast<size_t>(rendered->trained[0].first), text.find("yes", text.find("yes") + 1));
}

TEST(ChatTemplateTest, AWeightOfZeroLeavesItsTurnOut) {
  const Json messages = Turns({{"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "d"}});
  EXPECT_THAT(Trained(TemplateOf(GgufTokenizer()), messages, {1}), ElementsAre("d<|im_end|>\n"));
  EXPECT_THAT(Trained(Named("generation"), messages, {3}), ElementsAre("b<|im_end|>"));
}

TEST(ChatTemplateTest, GenerationMarksAreUsedWhereTheTemplateHasThem) {
  const Json messages = Turns({{"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "d"}});
  EXPECT_THAT(Trained(Named("generation"), messages), ElementsAre("b<|im_end|>", "d<|im_end|>"));
}

TEST(ChatTemplateTest, AnAssistantThatSpeaksFirstDoesNotTrainTheHeader) {
  const Json messages = Turns({{"assistant", "welcome"}, {"user", "a"}, {"assistant", "b"}});
  EXPECT_THAT(Trained(TemplateOf(GgufTokenizer()), messages), ElementsAre("welcome<|im_end|>\n", "b<|im_end|>\n"));
}

TEST(ChatTemplateTest, ATemplateWithoutAGenerationPrompt) {
  const Json messages = Turns({{"user", "a"}, {"assistant", "b"}});
  const ChatTemplate chat = Named("mistral", "llama3");
  EXPECT_THAT(Trained(chat, messages), ElementsAre(" b<|eot_id|>"));
}

TEST(ChatTemplateTest, ATemplateThatMovesTheSystemMessage) {
  // Mistral's puts it before the last question, so no beginning of the text is the text of a beginning.
  const Json messages =
      Turns({{"system", "be brief"}, {"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "d"}});
  const auto parts = Trained(Named("mistral", "llama3"), messages);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_THAT(parts[0], testing::EndsWith("b<|eot_id|>"));
  EXPECT_THAT(parts[0], testing::Not(HasSubstr("INST")));
  EXPECT_THAT(parts[1], testing::EndsWith("d<|eot_id|>"));
}

TEST(ChatTemplateTest, ATemplateThatDropsEarlierThoughts) {
  const Json messages = Turns({{"user", "a"},
                               {"assistant", "<think>\none\n</think>\n\nfirst"},
                               {"user", "b"},
                               {"assistant", "<think>\ntwo\n</think>\n\nsecond"}});
  EXPECT_THAT(Trained(Named("qwen3"), messages),
              ElementsAre("first<|im_end|>\n", "<think>\ntwo\n</think>\n\nsecond<|im_end|>\n"));
}

TEST(ChatTemplateTest, ToolCallsTrainWithTheirTurn) {
  Json messages = Turns({{"user", "weather?"}, {"assistant", ""}, {"tool", "21"}, {"assistant", "21 degrees"}});
  messages[1]["tool_calls"] = Json::parse(R"([{"function": {"name": "weather", "arguments": {"city": "Paris"}}}])");
  const auto parts = Trained(Named("qwen2.5"), messages);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_THAT(parts[0], HasSubstr(R"({"name": "weather", "arguments": {"city": "Paris"}})"));
  EXPECT_THAT(parts[0], testing::EndsWith("<|im_end|>\n"));
  EXPECT_EQ(parts[1], "21 degrees<|im_end|>\n");
}

TEST(ChatTemplateTest, AModelWithoutATemplateSaysSo) {
  const auto chat = ChatTemplate::Create(GoldenTokenizer("qwen2"));
  EXPECT_EQ(ErrorReason(chat.status()), "NO_CHAT_TEMPLATE");
}

TEST(ChatTemplateTest, AnAnswerThatCannotBeFollowedIsAnError) {
  TokenizerFiles files = GoldenTokenizerFiles("qwen2", "");
  files.chat_template = "{% for m in messages %}{{ m.content | length }}{% endfor %}{{ messages | length }}";
  const auto tokenizer = TokenizerFromJson(files);
  ASSERT_TRUE(tokenizer.ok());
  const Json messages = Turns({{"user", "a"}, {"assistant", "b"}, {"user", "c"}});
  const auto rendered = TemplateOf(*tokenizer).RenderForTraining(messages, Json(), {false, true, false});
  EXPECT_EQ(ErrorReason(rendered.status()), "TEMPLATE_UNTRACEABLE") << rendered.status();
}

TEST(ChatTemplateTest, ALineHasOneBudgetForAllOfItsRenderings) {
  const ChatTemplate chat = TemplateOf(GgufTokenizer());
  std::vector<std::pair<std::string, std::string>> turns;
  for (int i = 0; i < 40; ++i) turns.emplace_back(i % 2 == 0 ? "user" : "assistant", std::string(1000, 'a'));
  const Json messages = Turns(turns);
  std::vector<bool> trains(messages.size());
  for (size_t i = 1; i < trains.size(); i += 2) trains[i] = true;
  EXPECT_TRUE(chat.RenderForTraining(messages, Json(), trains).ok());
  // Enough for the whole several times over, and not for the forty renderings of its beginnings.
  jinja::RenderLimits few;
  few.max_bytes = 400'000;
  const auto refused = chat.RenderForTraining(messages, Json(), trains, few);
  EXPECT_EQ(ErrorReason(refused.status()), "TEMPLATE_LIMIT") << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("shorten or split it"));
  EXPECT_TRUE(chat.Render(messages, Json(), false).ok());
}

}  // namespace
}  // namespace longhaul::data
