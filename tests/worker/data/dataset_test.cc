#include "worker/data/dataset.h"

#include <numeric>

#include "base/limits.h"
#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"

namespace longhaul::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Model {
  explicit Model(Tokenizer t) : tokenizer(std::move(t)), chat(TemplateOf(tokenizer)) {}
  Tokenizer tokenizer;
  ChatTemplate chat;
};

Model SmolLm() { return Model(GgufTokenizer()); }
Model Llama() { return Model(GoldenTokenizer("llama3", "llama3")); }
Model Qwen() { return Model(GoldenTokenizer("qwen2", "qwen2.5")); }

Dataset Load(const Model& model, const std::string& lines, const DatasetOptions& options = {}) {
  const TempDir dir;
  auto dataset = LoadDataset(dir.Write("data.jsonl", lines), model.tokenizer, &model.chat, options);
  EXPECT_TRUE(dataset.ok()) << dataset.status();
  return *std::move(dataset);
}

std::string Line(const Json& messages) { return Json{{"messages", messages}}.dump() + "\n"; }
std::string TextLine(const std::string& text) { return Json{{"text", text}}.dump() + "\n"; }

std::string TrainedText(const Model& model, const Example& example) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < example.ids.size(); ++i) {
    if (example.train[i] != 0) ids.push_back(example.ids[i]);
  }
  return model.tokenizer.Decode(ids, false);
}

// ids and masks against text and spans written by hand in tests/golden/data_templates.py.
TEST(DatasetTest, IdsAndMasksEqualTheOnesMadeByHand) {
  for (const auto& [style, model] :
       {std::pair("smollm", SmolLm()), std::pair("llama3", Llama()), std::pair("qwen2", Qwen())}) {
    const Json& rows = GoldenTokens()["tokenizers"][style]["masks"];
    ASSERT_GE(rows.size(), 6u);
    for (const Json& row : rows) {
      const Dataset dataset = Load(model, Line(row["messages"]));
      ASSERT_EQ(dataset.examples.size(), 1u) << style << " " << row["messages"];
      EXPECT_EQ(dataset.examples[0].ids, row["ids"].get<std::vector<int32_t>>()) << style << row["text"];
      EXPECT_EQ(dataset.examples[0].train, row["train"].get<std::vector<uint8_t>>()) << style << row["text"];
    }
  }
}

TEST(DatasetTest, OnlyTheAnswerAndItsEndOfTurnTrain) {
  const Model model = SmolLm();
  const Dataset dataset =
      Load(model,
           Line({Message("user", "a"), Message("assistant", "b c"), Message("user", "d"), Message("assistant", "e")}));
  ASSERT_EQ(dataset.examples.size(), 1u);
  EXPECT_EQ(TrainedText(model, dataset.examples[0]), "b c<|im_end|>e<|im_end|>");
}

TEST(DatasetTest, ResponseMaskByStringSearch) {
  const Model model = SmolLm();
  const Dataset dataset = Load(model, Line({Message("user", "yes"), Message("assistant", "yes")}));
  ASSERT_EQ(dataset.examples.size(), 1u);
  const Example& example = dataset.examples[0];
  EXPECT_EQ(TrainedText(model, example), "yes<|im_end|>");
  // What trains is one run, the answer's: from just after the header to the end of turn, before the last newline.
  const auto first = std::find(example.train.begin(), example.train.end(), 1);
  const auto last = std::find(first, example.train.end(), 0);
  EXPECT_EQ(std::count(last, example.train.end(), 1), 0);
  EXPECT_EQ(example.train.end() - last, 1);
}

TEST(DatasetTest, BosIsNotDoubledOnTemplateRenderedText) {
  const Model model = Llama();
  const Dataset dataset = Load(model, Line({Message("user", "a"), Message("assistant", "b")}));
  ASSERT_EQ(dataset.examples.size(), 1u);
  const std::vector<int32_t>& ids = dataset.examples[0].ids;
  EXPECT_EQ(ids.front(), model.tokenizer.bos_id());
  EXPECT_EQ(std::count(ids.begin(), ids.end(), model.tokenizer.bos_id()), 1);
}

TEST(DatasetTest, BosIsNotMissingOnRawText) {
  const Model llama = Llama(), qwen = Qwen();
  const Dataset with = Load(llama, TextLine("hello world"));
  ASSERT_EQ(with.examples.size(), 1u);
  EXPECT_EQ(with.examples[0].ids.front(), llama.tokenizer.bos_id());
  const Dataset without = Load(qwen, TextLine("hello world"));
  auto expected = qwen.tokenizer.Encode("hello world", {}).value();
  expected.push_back(qwen.tokenizer.eos_id());
  EXPECT_EQ(without.examples[0].ids, expected);
}

TEST(DatasetTest, EosIsAppendedToRawTextUnlessItIsThere) {
  const Model model = SmolLm();
  const int32_t eos = model.tokenizer.eos_id();
  const Dataset dataset = Load(model, TextLine("hello") + TextLine("hello<|im_end|>"));
  ASSERT_EQ(dataset.examples.size(), 2u);
  EXPECT_EQ(dataset.examples[0].ids, dataset.examples[1].ids);
  EXPECT_EQ(dataset.examples[0].ids.back(), eos);
  EXPECT_EQ(std::accumulate(dataset.examples[0].train.begin(), dataset.examples[0].train.end(), 0u),
            dataset.examples[0].ids.size());
}

TEST(DatasetTest, NoEosIsAddedToWhatATemplateRendered) {
  const Model model = SmolLm();
  const Dataset dataset = Load(model, Line({Message("user", "a"), Message("assistant", "b")}));
  ASSERT_EQ(dataset.examples.size(), 1u);
  EXPECT_NE(dataset.examples[0].ids.back(), model.tokenizer.eos_id());  // the template's newline is last
}

TEST(DatasetTest, PadEqualsEosAndEosIsStillLearned) {
  const Model model = SmolLm();
  ASSERT_EQ(model.tokenizer.pad_id(), model.tokenizer.eos_id());
  const Dataset dataset = Load(model, Line({Message("user", "a"), Message("assistant", "b")}) + "\n");
  const Example& example = dataset.examples.at(0);
  int trained_eos = 0;
  for (size_t i = 0; i < example.ids.size(); ++i) {
    trained_eos += example.ids[i] == model.tokenizer.eos_id() && example.train[i] != 0 ? 1 : 0;
  }
  EXPECT_EQ(trained_eos, 1);
}

TEST(DatasetTest, TruncationKeepsTheStartAndCountsIt) {
  const Model model = SmolLm();
  const std::string lines = TextLine("one two three four five six seven eight nine ten") + TextLine("a");
  const Dataset whole = Load(model, lines);
  const Dataset cut = Load(model, lines, {.max_sequence_length = 5});
  ASSERT_EQ(cut.examples.size(), 2u);
  EXPECT_EQ(cut.report.truncated, 1);
  const auto& ids = whole.examples[0].ids;
  EXPECT_EQ(cut.examples[0].ids, std::vector<int32_t>(ids.begin(), ids.begin() + 5));
  EXPECT_EQ(cut.examples[0].train.size(), 5u);
}

TEST(DatasetTest, ARowWithNothingLeftToTrainIsDroppedAndCounted) {
  const Model model = SmolLm();
  Json silent = Message("assistant", "b");
  silent["weight"] = 0;
  const Dataset dataset =
      Load(model,
           Line({Message("user", "a"), silent}) +
               Line({Message("user", "a long question with many many words"), Message("assistant", "b")}) +
               Line({Message("user", "a"), Message("assistant", "b")}),
           {.max_sequence_length = 1000});
  EXPECT_EQ(dataset.report.dropped, 1);
  EXPECT_EQ(dataset.examples.size(), 2u);
  const Dataset cut = Load(model, Line({Message("user", "a"), Message("assistant", "b")}), {.max_sequence_length = 8});
  EXPECT_EQ(cut.report.dropped, 1);
  EXPECT_TRUE(cut.examples.empty());
}

TEST(DatasetTest, WeightDecidesWhichTurnTrains) {
  const Model model = SmolLm();
  Json first = Message("assistant", "b");
  first["weight"] = 0;
  const Dataset dataset =
      Load(model, Line({Message("user", "a"), first, Message("user", "c"), Message("assistant", "d")}));
  EXPECT_EQ(TrainedText(model, dataset.examples.at(0)), "d<|im_end|>");
}

TEST(DatasetTest, EveryTokenTrainsWhereResponsesOnlyIsOff) {
  const Model model = SmolLm();
  const Dataset dataset =
      Load(model, Line({Message("user", "a"), Message("assistant", "b")}), {.train_on_responses_only = false});
  const Example& example = dataset.examples.at(0);
  EXPECT_EQ(std::count(example.train.begin(), example.train.end(), 1), static_cast<int64_t>(example.ids.size()));
  EXPECT_EQ(dataset.report.trained_tokens, static_cast<int64_t>(example.ids.size()) - 1);
}

TEST(DatasetTest, ContentInPartsAndToolArgumentsAsTextAreUnderstood) {
  const Model model = Qwen();
  const Dataset dataset = Load(
      model,
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},)"
      R"({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}]})");
  ASSERT_EQ(dataset.examples.size(), 1u) << dataset.report.errors.at(0).reason;
  const std::string text = model.tokenizer.Decode(dataset.examples[0].ids, false);
  EXPECT_THAT(text, HasSubstr("user\nab<|im_end|>"));
  EXPECT_THAT(text, HasSubstr(R"("arguments": {"x": 1}})"));
}

TEST(DatasetTest, BadLinesAreReportedByLineAndField) {
  const Model model = SmolLm();
  const std::string good = Line({Message("user", "a"), Message("assistant", "b")});
  const Dataset dataset =
      Load(model, good + "not json\n" + R"({"messages": [{"role": "robot", "content": "x"}]})" + "\n\n" +
                      R"({"messages": [{"role": "user", "content": "x"}]})" + "\n" + R"({"messages": []})" + "\n" +
                      R"({"messages": [{"role": "user"}]})" + "\n" + R"({"other": 1})" + "\n[1]\n" +
                      R"({"messages": [{"role": "user", "content": 5}]})" + "\n" +
                      R"({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]})" + "\n" +
                      R"({"text": "wrong kind"})" + "\n" +
                      "{\"messages\": [{\"role\": \"assistant\", \"content\": \"\xFF\"}]}\n" + good);
  EXPECT_EQ(dataset.examples.size(), 2u);
  EXPECT_EQ(dataset.examples[1].line, 14);
  std::vector<std::pair<int64_t, std::string>> got;
  for (const LineError& error : dataset.report.errors) {
    got.emplace_back(error.line, error.field);
    EXPECT_FALSE(error.reason.empty());
  }
  using P = std::pair<int64_t, std::string>;
  EXPECT_THAT(got, ElementsAre(P{2, ""}, P{3, "messages[0].role"}, P{5, "messages"}, P{6, "messages"},
                               P{7, "messages[0].content"}, P{8, ""}, P{9, ""}, P{10, "messages[0].content"},
                               P{11, "messages[0].weight"}, P{12, "messages"}, P{13, ""}));
  EXPECT_EQ(dataset.report.error_count, 11);
}

TEST(DatasetTest, ABadLineDecidesNoFormat) {
  const Dataset texts = Load(SmolLm(), R"({"messages": []})"
                                       "\n" +
                                           TextLine("a") + TextLine("b"));
  EXPECT_EQ(texts.examples.size(), 2u);
  EXPECT_EQ(texts.report.error_count, 1);
  const Dataset chats =
      Load(SmolLm(), R"({"text": 5})"
                     "\n" +
                         Line({Message("user", "a"), Message("assistant", "b")}) + TextLine("of another kind"));
  EXPECT_EQ(chats.examples.size(), 1u);
  EXPECT_EQ(chats.report.error_count, 2);
}

TEST(DatasetTest, TheFirstErrorsAreKeptAndAllAreCounted) {
  std::string lines;
  for (int i = 0; i < 250; ++i) lines += "{}\n";
  const Dataset dataset = Load(SmolLm(), lines);
  EXPECT_EQ(dataset.report.error_count, 250);
  EXPECT_EQ(dataset.report.errors.size(), static_cast<size_t>(limits::kMaxDatasetErrorsReported));
}

TEST(DatasetTest, AFileMayEndWithoutANewlineAndBeginWithAMark) {
  const Model model = SmolLm();
  const Dataset dataset = Load(model,
                               "\xEF\xBB\xBF"
                               R"({"text": "a"})"
                               "\r\n"
                               R"({"text": "b"})");
  EXPECT_EQ(dataset.examples.size(), 2u);
  EXPECT_EQ(dataset.report.error_count, 0);
}

TEST(DatasetTest, MessagesWithoutATemplateAreAnError) {
  const TempDir dir;
  const auto dataset = LoadDataset(dir.Write("d.jsonl", Line({Message("user", "a"), Message("assistant", "b")})),
                                   GoldenTokenizer("qwen2"), nullptr, {});
  ASSERT_TRUE(dataset.ok());
  EXPECT_EQ(dataset->report.error_count, 1);
  DatasetOptions cancelled;
  int asked = 0;
  cancelled.cancelled = [&asked] { return ++asked == 2; };
  const std::string two = dir.Write("two.jsonl", R"({"text": "a"})"
                                                 "\n"
                                                 R"({"text": "b"})"
                                                 "\n"
                                                 R"({"text": "c"})"
                                                 "\n");
  EXPECT_EQ(LoadDataset(two, GoldenTokenizer("qwen2"), nullptr, cancelled).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 2) << "at the line where it was told";
  EXPECT_FALSE(LoadDataset(dir.path() + "/none.jsonl", GoldenTokenizer("qwen2"), nullptr, {}).ok());
}

TEST(DatasetTest, TheReportCountsWhatIsThere) {
  const Dataset dataset = Load(SmolLm(), TextLine("a") + TextLine("b") + TextLine("one two three four five six seven"));
  int64_t tokens = 0, examples = 0;
  for (const Example& example : dataset.examples) tokens += static_cast<int64_t>(example.ids.size());
  for (const LengthBucket& bucket : dataset.report.length_histogram) examples += bucket.examples;
  EXPECT_EQ(dataset.report.examples, 3);
  EXPECT_EQ(dataset.report.tokens, tokens);
  EXPECT_EQ(dataset.report.trained_tokens, tokens - 3);
  EXPECT_EQ(examples, 3);
  EXPECT_EQ(dataset.report.length_histogram.front().up_to_tokens, 2);
  EXPECT_EQ(dataset.report.length_histogram.front().examples, 2);
}

TEST(DatasetTest, TheHoldOutIsSeededAndDisjoint) {
  std::vector<Example> all(10);
  for (size_t i = 0; i < all.size(); ++i) all[i].line = static_cast<int64_t>(i);
  std::vector<Example> train = all;
  const auto eval = HoldOut(3, 42, &train);
  ASSERT_TRUE(eval.ok());
  std::vector<int64_t> held, kept;
  for (const Example& example : *eval) held.push_back(example.line);
  for (const Example& example : train) kept.push_back(example.line);
  EXPECT_THAT(held, ElementsAre(1, 2, 6));  // the first three of EpochOrder(10, 42, 0), in the file's order
  EXPECT_THAT(kept, ElementsAre(0, 3, 4, 5, 7, 8, 9));
  EXPECT_FALSE(HoldOut(7, 42, &train).ok());
}

}  // namespace
}  // namespace longhaul::data
