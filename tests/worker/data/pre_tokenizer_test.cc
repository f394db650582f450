// The scanners against the published regexes, run by PCRE2.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "worker/data/pre_tokenizer.h"

#include <pcre2.h>

#include <random>
#include <string>

#include "base/check.h"
#include "gtest/gtest.h"
#include "worker/data/unicode.h"

namespace longhaul::data {
namespace {

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
#define LONGHAUL_LLAMA3(digits)                                                                                  \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" digits R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|)" \
  R"(\s+(?!\S)|\s+)"

class Regex {
 public:
  explicit Regex(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE at = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP, &error,
                          &at, nullptr);
    LH_CHECK(code_ != nullptr, pattern);
    match_ = pcre2_match_data_create_from_pattern(code_, nullptr);
  }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  ~Regex() {
    pcre2_match_data_free(match_);
    pcre2_code_free(code_);
  }
  // Ends of the words: each match and each stretch between matches.
  std::vector<size_t> Ends(const std::string& text) const {
    std::vector<size_t> ends;
    size_t at = 0;
    while (at < text.size()) {
      const int rc = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NOTEMPTY,
                                 match_, nullptr);
      if (rc < 0) break;
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match_);
      if (range[0] > at) ends.push_back(range[0]);
      ends.push_back(range[1]);
      at = range[1];
    }
    if (at < text.size()) ends.push_back(text.size());
    return ends;
  }

 private:
  pcre2_code* code_;
  pcre2_match_data* match_;
};

// Characters that every Unicode version since 6.0 classes alike, dense in what the regexes tell apart.
std::string RandomText(std::mt19937* random) {
  static const std::vector<std::string> pieces = {
      " ",      " ",      "  ",     "\n",     "\r",     "\r\n",   "\t",         "\v",     "\f",     "\u0085", "\u00A0",
      "\u2028", "\u3000", "\u200B", "a",      "b",      "S",      "s",          "t",      "D",      "\u017F", "re",
      "Ve",     "LL",     "m",      "'",      "'",      "\u2019", "1",          "23",     "4",      "5",      "x",
      "\u00B2", "\u2167", "\u00BD", "\u0661", "\u4E00", "\u00E9", "e\u0301",    "\u3042", "\u0391", ".",      "!",
      "_",      "-",      "(",      "\u00BF", "\u20AC", "\u00AD", "\U0001F642", "\u0640", "\u0903", "\u0000"};
  std::string text;
  const size_t length = (*random)() % 16;
  for (size_t i = 0; i < length; ++i) text += pieces[(*random)() % pieces.size()];
  return text;
}

void ExpectEqualToRegex(PreTokenizerStep step, const std::string& pattern, uint32_t seed) {
  const Regex regex(pattern);
  std::mt19937 random(seed);
  std::vector<size_t> ends, scratch;
  for (int i = 0; i < 60'000; ++i) {
    const std::string text = RandomText(&random);
    PreTokenize({step}, text, &ends, &scratch);
    ASSERT_EQ(ends, regex.Ends(text)) << testing::PrintToString(text);
  }
}

TEST(PreTokenizerTest, Gpt2EqualsItsRegex) { ExpectEqualToRegex(PreTokenizerStep::kGpt2, kGpt2, 1); }

TEST(PreTokenizerTest, Llama3EqualsItsRegex) {
  ExpectEqualToRegex(PreTokenizerStep::kLlama3, LONGHAUL_LLAMA3(R"(\p{N}{1,3})"), 2);
}

TEST(PreTokenizerTest, Qwen2EqualsItsRegex) {
  ExpectEqualToRegex(PreTokenizerStep::kQwen2, LONGHAUL_LLAMA3(R"(\p{N})"), 3);
}

TEST(PreTokenizerTest, DigitsEqualTheirRegexes) {
  ExpectEqualToRegex(PreTokenizerStep::kDigitsIndividual, R"(\p{N})", 4);
  ExpectEqualToRegex(PreTokenizerStep::kDigitsRuns, R"(\p{N}+)", 5);
}

std::vector<std::string> Words(const std::vector<PreTokenizerStep>& steps, const std::string& text) {
  std::vector<size_t> ends, scratch;
  PreTokenize(steps, text, &ends, &scratch);
  std::vector<std::string> words;
  size_t begin = 0;
  for (size_t end : ends) {
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return words;
}

TEST(PreTokenizerTest, ALookaheadSeesTheEndOfItsOwnWordOnly) {
  using W = std::vector<std::string>;
  EXPECT_EQ(Words({PreTokenizerStep::kGpt2}, "a  1"), (W{"a", " ", " 1"}));
  // Digits cuts first, so the spaces end their piece and stay together.
  EXPECT_EQ(Words({PreTokenizerStep::kDigitsIndividual, PreTokenizerStep::kGpt2}, "a  12"), (W{"a", "  ", "1", "2"}));
}

TEST(PreTokenizerTest, NothingComesFromNothing) { EXPECT_TRUE(Words({PreTokenizerStep::kGpt2}, "").empty()); }

TEST(UnicodeTest, Utf8IsCheckedStrictly) {
  for (const char* good : {"", "a", "\u00E9", "\u20AC", "\U0001F642", "\U0010FFFF", "\uD7FF", "\uE000"}) {
    EXPECT_TRUE(IsValidUtf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xFF"}) {
    EXPECT_FALSE(IsValidUtf8(bad)) << testing::PrintToString(bad);
  }
  EXPECT_EQ(ValidUtf8Prefix("ab\xE2\x82"), 2u);
  EXPECT_EQ(LossyUtf8("a\xE2\x82z\xFF"), "a\uFFFDz\uFFFD");
}

}  // namespace
}  // namespace longhaul::data
