#include "worker/data/preview.h"

#include <cstdio>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"

namespace longhaul::data {
namespace {

using testing::HasSubstr;

class PreviewTest : public testing::Test {
 protected:
  Json Preview(const std::string& lines, int64_t count, const DatasetOptions& options = {}) {
    const TempDir dir;
    auto preview = PreviewDataset(dir.Write("d.jsonl", lines), count, tokenizer_, &chat_, options);
    EXPECT_TRUE(preview.ok()) << preview.status();
    return preview.value_or(Json());
  }
  const Tokenizer tokenizer_ = GgufTokenizer();
  const ChatTemplate chat_ = TemplateOf(tokenizer_);
  const std::string good_ =
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "héllo 🙂"}]})"
      "\n";
};

TEST_F(PreviewTest, ShowsIdsMaskAndWhatTrains) {
  const Json preview = Preview(good_ + "nonsense\n" + good_ + good_, 2);
  ASSERT_EQ(preview["examples"].size(), 2u);
  const Json& second = preview["examples"][1];
  EXPECT_EQ(second["line"], 3);
  EXPECT_EQ(second["ids"].size(), second["train"].size());
  EXPECT_EQ(second["tokens"], second["ids"].size());
  EXPECT_EQ(second["cut"], 0);
  EXPECT_EQ(second["trained_text"], "héllo 🙂<|im_end|>");
  ASSERT_EQ(preview["errors"].size(), 1u);
  EXPECT_EQ(preview["errors"][0]["line"], 2);
  EXPECT_EQ(preview["report"]["examples"], 3);
  EXPECT_EQ(preview["report"]["error_count"], 1);
}

TEST_F(PreviewTest, MarksWhatTrainsForPeople) {
  const std::string text = PreviewText(Preview(good_ + "nonsense\n", 5), tokenizer_, {});
  EXPECT_THAT(text, HasSubstr("assistant\n【héllo 🙂<|im_end|>】"));
  EXPECT_THAT(text, HasSubstr("line 2: "));
  EXPECT_THAT(text, HasSubstr("1 examples"));
  EXPECT_THAT(PreviewText(Preview(good_, 5), tokenizer_, {.color = true}),
              HasSubstr("\x1b[32mhéllo 🙂<|im_end|>\x1b[0m"));
}

TEST_F(PreviewTest, SaysWhatIsCutAndDropped) {
  const Json preview = Preview(good_, 1, {.max_sequence_length = 6});
  ASSERT_EQ(preview["examples"].size(), 1u);
  EXPECT_GT(preview["examples"][0]["cut"].get<int64_t>(), 0);
  EXPECT_EQ(preview["examples"][0]["dropped"], true);
  const std::string text = PreviewText(preview, tokenizer_, {});
  EXPECT_THAT(text, HasSubstr("are cut"));
  EXPECT_THAT(text, HasSubstr("nothing left to train on"));
}

TEST_F(PreviewTest, ShowsTheTextAndIdsOfWhatIsCut) {
  const Json whole = Preview(good_, 1)["examples"][0];
  const auto all = whole["ids"].get<std::vector<int32_t>>();
  EXPECT_TRUE(whole["cut_ids"].empty());
  const Json preview = Preview(good_, 1, {.max_sequence_length = 6});
  const Json& cut = preview["examples"][0];
  std::vector<int32_t> joined = cut["ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(joined.size(), 6u);
  EXPECT_EQ(cut["cut_ids"].size(), cut["cut"].get<size_t>());
  for (const Json& id : cut["cut_ids"]) joined.push_back(id.get<int32_t>());
  EXPECT_EQ(joined, all);
  EXPECT_THAT(cut["cut_text"].get<std::string>(), HasSubstr("héllo 🙂<|im_end|>"));
  EXPECT_THAT(PreviewText(preview, tokenizer_, {}), HasSubstr("--- cut from here ---"));
  EXPECT_THAT(PreviewText(preview, tokenizer_, {}), HasSubstr("héllo 🙂<|im_end|>"));
}

TEST_F(PreviewTest, ALongCutIsShownInPart) {
  std::string words;
  for (int i = 0; i < 300; ++i) words += " word";
  const Json preview = Preview(Json{{"text", words}}.dump() + "\n", 1, {.max_sequence_length = 2});
  const std::string text = PreviewText(preview, tokenizer_, {});
  EXPECT_THAT(text, HasSubstr("more tokens (-o json has all)"));
  EXPECT_LT(text.size(), words.size());
}

TEST_F(PreviewTest, ATableHasEveryTokenOnALine) {
  const Json preview = Preview(good_, 1, {.max_sequence_length = 8});
  const Json& example = preview["examples"][0];
  const std::string text = PreviewText(preview, tokenizer_, {.ids = true});
  char first[64];
  std::snprintf(first, sizeof(first), "%7d %8d  -  ", 0, example["ids"][0].get<int>());
  EXPECT_THAT(text, HasSubstr(first));
  EXPECT_THAT(text, HasSubstr("  cut    "));
  int64_t lines = 0;
  for (const Json& id : example["cut_ids"]) lines += text.find(" " + id.dump() + "  cut") != std::string::npos;
  EXPECT_EQ(lines, example["cut"].get<int64_t>());
  EXPECT_THAT(PreviewText(Preview(good_, 1), tokenizer_, {.ids = true}), HasSubstr("  train  \"<|im_end|>\""));
}

TEST_F(PreviewTest, AFileThatIsNotThereIsAnError) {
  EXPECT_FALSE(PreviewDataset("/nonexistent/d.jsonl", 1, tokenizer_, &chat_, {}).ok());
}

}  // namespace
}  // namespace longhaul::data
