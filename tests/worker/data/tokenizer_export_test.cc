// A tokenizer written as Hugging Face's files and read back is the same tokenizer. That Hugging Face's own library
// reads them alike: tests/golden/tokenizer_parity.py.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"
#include "worker/data/tokenizer_json.h"
#include "worker/formats/gguf.h"

namespace longhaul::data {
namespace {

using testing::HasSubstr;

// Every kind of added token, names, templates, unknown and surrounding tokens.
TokenizerSource SmallSource() {
  TokenizerSource source;
  source.name = "small";
  source.tokens = {"a", "b", "ab", "Ġ", "", "<unk>", "<s>", "</s>"};
  source.merges = {{"a", "b"}};
  source.steps = {PreTokenizerStep::kLlama3};
  source.ignore_merges = true;
  source.nfc = true;
  source.model_unk_id = 5;
  source.unk_id = 5;
  source.bos_id = 6;
  source.eos_id = 7;
  source.prefix_ids = {6};
  source.suffix_ids = {7, 7};
  source.chat_template = "{{ messages }}";
  source.tool_chat_template = "{{ tools }}";
  source.added = {{"<s>", 6, true, false, false, false, false},
                  {"</s>", 7, true, false, true, false, false},
                  {"wörd", 9, false, true, false, true, true}};
  return source;
}

std::string DigestOf(const TokenizerSource& source) {
  const auto tokenizer = Tokenizer::Create(source);
  return tokenizer.ok() ? tokenizer->digest() : tokenizer.status().ToString();
}

std::string DigestAfterRoundTrip(const TokenizerSource& source) {
  const auto files = TokenizerToJson(source);
  if (!files.ok()) return files.status().ToString();
  const auto tokenizer = TokenizerFromJson(*files);
  return tokenizer.ok() ? tokenizer->digest() : tokenizer.status().ToString();
}

TEST(TokenizerExportTest, ReadsBackAsItself) {
  const std::vector<std::vector<PreTokenizerStep>> all_steps = {
      {PreTokenizerStep::kGpt2},
      {PreTokenizerStep::kDigitsIndividual, PreTokenizerStep::kGpt2},
      {PreTokenizerStep::kDigitsRuns, PreTokenizerStep::kGpt2},
      {PreTokenizerStep::kLlama3},
      {PreTokenizerStep::kQwen2},
      {PreTokenizerStep::kGpt2, PreTokenizerStep::kDigitsRuns},
      {}};
  for (const auto& steps : all_steps) {
    TokenizerSource source = SmallSource();
    source.steps = steps;
    EXPECT_EQ(DigestAfterRoundTrip(source), DigestOf(source)) << steps.size();
  }
  TokenizerSource plain = SmallSource();
  plain.nfc = plain.ignore_merges = false;
  plain.model_unk_id = plain.unk_id = plain.bos_id = -1;
  plain.prefix_ids = plain.suffix_ids = {};
  plain.tool_chat_template = "";
  plain.added = {};
  EXPECT_EQ(DigestAfterRoundTrip(plain), DigestOf(plain));
  plain.chat_template = "";
  EXPECT_EQ(DigestAfterRoundTrip(plain), DigestOf(plain));
  EXPECT_NE(DigestOf(plain), DigestOf(SmallSource()));
}

TEST(TokenizerExportTest, AGgufReadsBackAsItself) {
  const auto file = formats::GgufFile::Open(GoldenPath("data_smollm.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto source = TokenizerSourceFromGguf(*file);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(DigestAfterRoundTrip(*source), GgufTokenizer().digest());
}

TEST(TokenizerExportTest, RefusesWhatTokenizerJsonCannotSay) {
  TokenizerSource twice = SmallSource();
  twice.tokens[4] = "ab";
  EXPECT_THAT(std::string(TokenizerToJson(twice).status().message()), HasSubstr("token 4 has an earlier one's text"));
  TokenizerSource bytes = SmallSource();
  bytes.tokens[4] = "\xff";
  EXPECT_THAT(std::string(TokenizerToJson(bytes).status().message()), HasSubstr("token 4 is not UTF-8"));
}

}  // namespace
}  // namespace longhaul::data
