// Ids and texts of Hugging Face tokenizers on 2,200 lines, for three styles of byte-level BPE
// (tests/golden/make_golden_data.py).
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"

namespace longhaul::data {
namespace {

class TokenizerGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  const Json& golden_ = GoldenTokens()["tokenizers"][GetParam()];
  const Tokenizer tokenizer_ = GoldenTokenizer(GetParam());
};

TEST_P(TokenizerGoldenTest, IdsEqualHuggingFace) {
  const Json& lines = GoldenTokens()["lines"];
  ASSERT_GE(lines.size(), 2000u);
  BpeScratch scratch;
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto ids = tokenizer_.Encode(lines[i].get<std::string>(), {.add_special = true}, &scratch);
    ASSERT_TRUE(ids.ok()) << ids.status();
    ASSERT_EQ(*ids, golden_["ids"][i].get<std::vector<int32_t>>()) << "line " << i << ": " << lines[i].dump();
  }
}

TEST_P(TokenizerGoldenTest, SpansGiveTheSameIdsAndCoverTheTextInOrder) {
  BpeScratch scratch;
  for (const Json& line : GoldenTokens()["lines"]) {
    const std::string text = line.get<std::string>();
    const auto encoding = tokenizer_.EncodeWithSpans(text, {}, &scratch);
    const auto ids = tokenizer_.Encode(text, {}, nullptr);
    ASSERT_TRUE(encoding.ok() && ids.ok());
    ASSERT_EQ(encoding->ids, *ids);
    ASSERT_EQ(encoding->spans.size(), ids->size());
    int64_t end = 0;
    for (const TokenSpan& span : encoding->spans) {
      ASSERT_LE(span.begin, span.end);
      ASSERT_GE(span.end, end) << line.dump();
      ASSERT_LE(span.end, static_cast<int64_t>(text.size()));
      end = span.end;
    }
  }
}

TEST_P(TokenizerGoldenTest, TextsEqualHuggingFace) {
  for (const Json& row : golden_["decoded"]) {
    const auto ids = row[0].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_.Decode(ids, false), row[1].get<std::string>());
    EXPECT_EQ(tokenizer_.Decode(ids, true), row[2].get<std::string>());
  }
}

TEST_P(TokenizerGoldenTest, AStreamOfTokensGivesTheWholeText) {
  for (const Json& row : golden_["decoded"]) {
    StreamDecoder stream(&tokenizer_, /*skip_special=*/false);
    std::string text;
    for (int32_t id : row[0].get<std::vector<int32_t>>()) text += stream.Append(id);
    text += stream.Flush();
    EXPECT_EQ(text, row[1].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGoldenTest, testing::Values("llama3", "qwen2", "smollm"),
                         [](const auto& param) { return std::string(param.param); });

TEST(TokenizerGgufGoldenTest, IdsEqualTheOnesFromTokenizerJson) {
  const Tokenizer gguf = GgufTokenizer();
  const Json& golden = GoldenTokens();
  int compared = 0;
  for (size_t i = 0; i < golden["lines"].size(); ++i) {
    const std::string text = golden["lines"][i].get<std::string>();
    // GGUF does not say which tokens swallow white space or stand alone.
    if (text.find("<mask>") != std::string::npos || text.find("<sep>") != std::string::npos ||
        text.find("nano") != std::string::npos) {
      continue;
    }
    const auto ids = gguf.Encode(text, {.add_special = true});
    ASSERT_TRUE(ids.ok());
    ASSERT_EQ(*ids, golden["tokenizers"]["smollm"]["ids"][i].get<std::vector<int32_t>>()) << i;
    ++compared;
  }
  EXPECT_GT(compared, 1000);
}

}  // namespace
}  // namespace longhaul::data
