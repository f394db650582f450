#include "worker/data/preview.h"

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
  const std::string text = PreviewText(Preview(good_ + "nonsense\n", 5), tokenizer_, false);
  EXPECT_THAT(text, HasSubstr("assistant\n【héllo 🙂<|im_end|>】"));
  EXPECT_THAT(text, HasSubstr("line 2: "));
  EXPECT_THAT(text, HasSubstr("1 examples"));
  EXPECT_THAT(PreviewText(Preview(good_, 5), tokenizer_, true), HasSubstr("\x1b[32mhéllo 🙂<|im_end|>\x1b[0m"));
}

TEST_F(PreviewTest, SaysWhatIsCutAndDropped) {
  const Json preview = Preview(good_, 1, {.max_sequence_length = 6});
  ASSERT_EQ(preview["examples"].size(), 1u);
  EXPECT_GT(preview["examples"][0]["cut"].get<int64_t>(), 0);
  EXPECT_EQ(preview["examples"][0]["dropped"], true);
  const std::string text = PreviewText(preview, tokenizer_, false);
  EXPECT_THAT(text, HasSubstr("are cut"));
  EXPECT_THAT(text, HasSubstr("nothing left to train on"));
}

TEST_F(PreviewTest, AFileThatIsNotThereIsAnError) {
  EXPECT_FALSE(PreviewDataset("/nonexistent/d.jsonl", 1, tokenizer_, &chat_, {}).ok());
}

}  // namespace
}  // namespace longhaul::data
