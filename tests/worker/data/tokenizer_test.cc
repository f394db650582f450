#include "worker/data/tokenizer.h"

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/test_support.h"

namespace longhaul::data {
namespace {

using testing::HasSubstr;

std::vector<int32_t> Ids(const Tokenizer& tokenizer, std::string_view text, const EncodeOptions& options = {}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(std::vector<int32_t>());
}

TEST(TokenizerTest, SpecialTokensInTextAreIdsUnlessTurnedOff) {
  const Tokenizer t = GgufTokenizer();
  EXPECT_EQ(Ids(t, "<|im_end|>"), std::vector<int32_t>{t.TokenToId("<|im_end|>")});
  const auto plain = Ids(t, "<|im_end|>", {.parse_special = false});
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(t.Decode(plain, true), "<|im_end|>");
}

TEST(TokenizerTest, WhitespaceBeforeASpecialTokenSplitsAsAtTheEndOfText) {
  const Tokenizer t = GoldenTokenizer("qwen2");
  auto expected = Ids(t, "a   ");
  expected.push_back(t.TokenToId("<|im_end|>"));
  EXPECT_EQ(Ids(t, "a   <|im_end|>"), expected);
}

TEST(TokenizerTest, AddSpecialAddsBosToLlamaAndNothingToQwen) {
  const Tokenizer llama = GoldenTokenizer("llama3"), qwen = GoldenTokenizer("qwen2");
  EXPECT_EQ(Ids(llama, "hi", {.add_special = true}).front(), llama.bos_id());
  EXPECT_EQ(Ids(llama, "hi", {.add_special = true}).size(), Ids(llama, "hi").size() + 1);
  EXPECT_EQ(Ids(qwen, "hi", {.add_special = true}), Ids(qwen, "hi"));
}

TEST(TokenizerTest, SpansPointIntoTheSourceAcrossNormalisation) {
  const Tokenizer t = GoldenTokenizer("qwen2");
  const std::string text = "xx e\u0301e\u0301 zz";
  const auto encoding = t.EncodeWithSpans(text, {});
  ASSERT_TRUE(encoding.ok());
  EXPECT_EQ(t.Decode(encoding->ids, false), "xx \u00E9\u00E9 zz");
  EXPECT_EQ(encoding->spans.front().begin, 0);
  EXPECT_EQ(encoding->spans.back().end, static_cast<int64_t>(text.size()));
  const TokenSpan& last = encoding->spans.back();
  EXPECT_EQ(text.substr(static_cast<size_t>(last.begin), static_cast<size_t>(last.end - last.begin)).back(), 'z');
}

TEST(TokenizerTest, BytesThatAreNotUtf8AreRefusedByPlace) {
  const auto ids = GgufTokenizer().Encode("ab\xFF", {});
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ErrorReason(ids.status()), "NOT_UTF8");
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 2"));
}

TEST(TokenizerTest, AnAddedTokenDecodesThroughTheByteMapAndKeepsItsText) {
  const Tokenizer t = GoldenTokenizer("qwen2");
  const int32_t id = t.TokenToId("caf\u00E9");
  ASSERT_GE(id, 0);
  EXPECT_EQ(t.TokenText(id), "caf\u00E9");
  EXPECT_EQ(t.TokenBytes(id), "caf\xE9");
  EXPECT_EQ(t.Decode({id}, false), "caf\uFFFD");
}

TEST(TokenizerTest, IdsOutsideTheVocabularyDecodeToNothing) {
  const Tokenizer t = GgufTokenizer();
  EXPECT_EQ(t.Decode({-1, t.vocab_size(), INT32_MAX, INT32_MIN}, false), "");
  EXPECT_EQ(t.TokenText(-5), "");
  EXPECT_EQ(t.TokenToId("no such token"), -1);
  EXPECT_FALSE(t.IsSpecial(-1));
}

TEST(TokenizerTest, ACharacterOfSeveralTokensIsPrintedWhole) {
  const Tokenizer t = GgufTokenizer();
  const auto ids = Ids(t, "\U0001F9EE");
  ASSERT_GT(ids.size(), 1u);
  StreamDecoder stream(&t);
  std::vector<std::string> parts;
  for (int32_t id : ids) parts.push_back(stream.Append(id));
  EXPECT_EQ(parts.back(), "\U0001F9EE");
  for (size_t i = 0; i + 1 < parts.size(); ++i) EXPECT_EQ(parts[i], "");
  stream.Append(ids[0]);
  EXPECT_EQ(stream.Flush(), "\uFFFD");
}

TEST(TokenizerTest, TheDigestFollowsContent) {
  EXPECT_EQ(GoldenTokenizer("qwen2").digest(), GoldenTokenizer("qwen2").digest());
  EXPECT_EQ(GgufTokenizer().digest().size(), 64u);
  const std::string plain = GoldenTokenizer("qwen2").digest();
  EXPECT_NE(plain, GoldenTokenizer("llama3").digest());
  EXPECT_NE(plain, GoldenTokenizer("qwen2", "qwen3").digest());
}

TEST(TokenizerTest, GgufNamesItsIdsAndTemplate) {
  const Tokenizer t = GgufTokenizer();
  EXPECT_EQ(t.TokenText(t.bos_id()), "<|im_start|>");
  EXPECT_EQ(t.TokenText(t.eos_id()), "<|im_end|>");
  EXPECT_EQ(t.pad_id(), t.eos_id());
  EXPECT_TRUE(t.IsSpecial(t.eos_id()));
  EXPECT_THAT(t.chat_template(), HasSubstr("You are a helpful AI assistant named SmolLM"));
  EXPECT_EQ(Ids(t, "hi", {.add_special = true}), Ids(t, "hi"));  // add_bos_token is false
}

// Replaces the first `from` of the golden tokenizer.json and loads the result.
absl::Status LoadChanged(const std::string& style, const std::string& from, const std::string& to) {
  TokenizerFiles files = GoldenTokenizerFiles(style, "");
  const size_t at = files.tokenizer_json.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) files.tokenizer_json.replace(at, from.size(), to);
  return TokenizerFromJson(files).status();
}

TEST(TokenizerTest, WhatIsNotSupportedIsNamed) {
  const std::tuple<const char*, const char*, const char*, const char*> cases[] = {
      {"qwen2", R"({"type":"NFC"})", R"({"type":"NFKC"})", "NFKC"},
      {"smollm", R"("type":"Digits")", R"("type":"Whitespace")", "Whitespace"},
      {"smollm", R"("type":"BPE")", R"("type":"Unigram")", "Unigram"},
      {"smollm", R"("byte_fallback":false)", R"("byte_fallback":true)", "byte_fallback"},
      {"llama3", R"(\\p{N}{1,3})", R"(\\p{N}{1,4})", "pattern"},
      {"llama3", R"("type":"TemplateProcessing")", R"("type":"RobertaProcessing")", "RobertaProcessing"},
      {"smollm", R"("add_prefix_space":false)", R"("add_prefix_space":true)", "add_prefix_space"},
  };
  for (const auto& [style, from, to, named] : cases) {
    const absl::Status status = LoadChanged(style, from, to);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << to << ": " << status;
    EXPECT_EQ(ErrorReason(status), "MODEL_UNSUPPORTED");
    EXPECT_THAT(std::string(status.message()), HasSubstr(named));
  }
}

TEST(TokenizerTest, ABrokenFileIsInvalidNotACrash) {
  EXPECT_EQ(ErrorReason(LoadChanged("smollm", R"("vocab":{)", R"("vocab":{"zz":-1,)")), "INVALID_MODEL");
  EXPECT_EQ(ErrorReason(LoadChanged("smollm", R"("vocab":{)", R"("vocab":{"zz":4000000,)")), "INVALID_MODEL");
  EXPECT_EQ(ErrorReason(LoadChanged("smollm", R"("merges":[)", R"("merges":["a b c",)")), "INVALID_MODEL");
  EXPECT_EQ(ErrorReason(LoadChanged("smollm", R"("merges":[)", R"("merges":[["qqqq","zzzz"],)")), "INVALID_MODEL");
  EXPECT_EQ(ErrorReason(LoadChanged("smollm", R"({"version")", R"(["version")")), "INVALID_JSON");
  TokenizerFiles files = GoldenTokenizerFiles("smollm", "");
  files.tokenizer_config_json = R"({"eos_token": "<nowhere>"})";
  const auto tokenizer = TokenizerFromJson(files);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("eos_token"));
}

TEST(TokenizerTest, AFolderIsReadWithItsTemplateFile) {
  const TempDir dir;
  const TokenizerFiles files = GoldenTokenizerFiles("smollm", "");
  dir.Write("tokenizer.json", files.tokenizer_json);
  dir.Write("tokenizer_config.json",
            R"({"eos_token": "<|im_end|>", "chat_template": [{"name": "default", "template": "plain"},
                {"name": "tool_use", "template": "with tools"}]})");
  auto tokenizer = Tokenizer::FromHuggingFaceFolder(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->chat_template(), "plain");
  EXPECT_EQ(tokenizer->tool_chat_template(), "with tools");
  dir.Write("chat_template.jinja", "from the file");
  tokenizer = Tokenizer::FromHuggingFaceFolder(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->chat_template(), "from the file");
}

}  // namespace
}  // namespace longhaul::data
