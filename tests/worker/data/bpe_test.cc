#include "worker/data/bpe.h"

#include <map>
#include <random>

#include "base/error.h"
#include "gtest/gtest.h"

namespace longhaul::data {
namespace {

// A vocabulary over a-d whose merges join earlier tokens at random.
struct RandomVocabulary {
  std::vector<std::string> tokens;
  std::vector<std::pair<std::string, std::string>> merges;

  RandomVocabulary(uint32_t seed, size_t size) {
    std::mt19937 random(seed);
    tokens = {"a", "b", "c", "d"};
    while (tokens.size() < size) {
      const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
      if (left.size() + right.size() > 12) continue;
      merges.emplace_back(left, right);
      if (std::find(tokens.begin(), tokens.end(), left + right) == tokens.end()) tokens.push_back(left + right);
    }
  }
  BpeModel Model(const BpeModel::Options& options = {}) const {
    const std::vector<std::string_view> views(tokens.begin(), tokens.end());
    const std::vector<std::pair<std::string_view, std::string_view>> pairs(merges.begin(), merges.end());
    auto model = BpeModel::Create(views, pairs, options);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
  // The definition: the pair of lowest rank, leftmost, is joined, until no pair is left.
  std::vector<std::string> Reference(const std::string& word) const {
    std::map<std::pair<std::string, std::string>, size_t> ranks;
    for (size_t i = 0; i < merges.size(); ++i) ranks[merges[i]] = i;  // of a repeated pair the last counts
    std::vector<std::string> parts;
    for (char c : word) parts.emplace_back(1, c);
    while (true) {
      size_t best = SIZE_MAX, at = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto it = ranks.find({parts[i], parts[i + 1]});
        if (it != ranks.end() && it->second < best) best = it->second, at = i;
      }
      if (best == SIZE_MAX) return parts;
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
  }
};

std::string RandomWord(std::mt19937* random, size_t length) {
  std::string word;
  for (size_t i = 0; i < length; ++i) word += static_cast<char>('a' + (*random)() % 4);
  return word;
}

std::vector<std::string> Encode(const BpeModel& model, const std::string& word, BpeScratch* scratch) {
  std::vector<BpeToken> tokens;
  model.EncodeWord(word, scratch, &tokens);
  std::vector<std::string> parts;
  for (const BpeToken& token : tokens) {
    parts.push_back(word.substr(token.begin, token.end - token.begin));
    EXPECT_EQ(model.TokenBytes(token.id), parts.back());
  }
  return parts;
}

TEST(BpeTest, EqualsTheDefinitionOnRandomVocabularies) {
  std::mt19937 random(7);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const RandomVocabulary vocabulary(seed, 60);
    const BpeModel model = vocabulary.Model();
    BpeScratch scratch;
    for (int i = 0; i < 150; ++i) {
      const std::string word = RandomWord(&random, 1 + random() % 60);
      ASSERT_EQ(Encode(model, word, &scratch), vocabulary.Reference(word)) << "seed " << seed << " word " << word;
    }
  }
}

TEST(BpeTest, EqualsTheDefinitionOnWordsTooLongForTheHeap) {
  std::mt19937 random(8);
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const RandomVocabulary vocabulary(seed, 60);
    const BpeModel model = vocabulary.Model();
    BpeScratch scratch;
    const std::string word = RandomWord(&random, 2500);
    ASSERT_EQ(Encode(model, word, &scratch), vocabulary.Reference(word)) << "seed " << seed;
  }
}

TEST(BpeTest, LongAndShortWordsShareAScratch) {
  const RandomVocabulary vocabulary(3, 60);
  const BpeModel model = vocabulary.Model();
  std::mt19937 random(9);
  BpeScratch shared;
  for (size_t length : {3u, 5000u, 3u, 24u, 25u, 5000u, 24u, 2048u, 2049u}) {
    const std::string word = RandomWord(&random, length);
    BpeScratch fresh;
    EXPECT_EQ(Encode(model, word, &shared), Encode(model, word, &fresh));
  }
}

TEST(BpeTest, ACachedWordGivesTheSameTokensAgain) {
  const RandomVocabulary vocabulary(4, 60);
  const BpeModel model = vocabulary.Model();
  std::mt19937 random(10);
  BpeScratch scratch;
  std::vector<std::string> words;
  for (int i = 0; i < 50'000; ++i) words.push_back(RandomWord(&random, 1 + random() % 24));
  for (const std::string& word : words) Encode(model, word, &scratch);
  for (size_t i = 0; i < words.size(); i += 97) {
    EXPECT_EQ(Encode(model, words[i], &scratch), vocabulary.Reference(words[i]));
  }
}

// Quadratic work would be 10^12 steps here.
TEST(BpeTest, AMegabyteWithoutSpacesIsNotQuadratic) {
  const RandomVocabulary vocabulary(5, 60);
  const BpeModel model = vocabulary.Model();
  std::mt19937 random(11);
  for (const std::string& word : {RandomWord(&random, 1'000'000), std::string(1'000'000, 'a')}) {
    BpeScratch scratch;
    std::vector<BpeToken> tokens;
    model.EncodeWord(word, &scratch, &tokens);
    std::string joined;
    for (const BpeToken& token : tokens) joined += model.TokenBytes(token.id);
    EXPECT_EQ(joined, word);
  }
}

TEST(BpeTest, IgnoreMergesTakesAWholeTokenFirst) {
  const std::vector<std::string_view> tokens = {"a", "b", "c", "ab", "bc", "abc"};
  const std::vector<std::pair<std::string_view, std::string_view>> merges = {{"b", "c"}};
  BpeScratch with, without;
  auto plain = BpeModel::Create(tokens, merges, {});
  auto ignoring = BpeModel::Create(tokens, merges, {.ignore_merges = true});
  ASSERT_TRUE(plain.ok() && ignoring.ok());
  EXPECT_EQ(Encode(*plain, "abc", &without), (std::vector<std::string>{"a", "bc"}));
  EXPECT_EQ(Encode(*ignoring, "abc", &with), (std::vector<std::string>{"abc"}));
  EXPECT_EQ(Encode(*ignoring, "abca", &with), (std::vector<std::string>{"a", "bc", "a"}));
}

TEST(BpeTest, AByteWithoutATokenIsDroppedOrUnknown) {
  const std::vector<std::string_view> tokens = {"a", "b", "<unk>"};
  auto dropping = BpeModel::Create(tokens, {}, {});
  auto marking = BpeModel::Create(tokens, {}, {.unk_id = 2});
  ASSERT_TRUE(dropping.ok() && marking.ok());
  for (const auto& [model, ids] :
       {std::pair(&*dropping, std::vector<int32_t>{0, 1}), std::pair(&*marking, std::vector<int32_t>{0, 2, 1})}) {
    BpeScratch scratch;
    std::vector<BpeToken> out;
    model->EncodeWord("azb", &scratch, &out);
    std::vector<int32_t> got;
    for (const BpeToken& token : out) got.push_back(token.id);
    EXPECT_EQ(got, ids);
  }
}

TEST(BpeTest, AMergeOutsideTheVocabularyIsNamed) {
  const std::vector<std::string_view> tokens = {"a", "b"};
  const std::vector<std::pair<std::string_view, std::string_view>> merges = {{"a", "b"}};
  const auto model = BpeModel::Create(tokens, merges, {});
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(ErrorReason(model.status()), "INVALID_MODEL");
  EXPECT_NE(model.status().message().find("merge 0"), std::string::npos) << model.status();
}

TEST(BpeTest, ByteMapIsTheOneOfByteLevelVocabularies) {
  EXPECT_EQ(ByteToChar('!'), U'!');
  EXPECT_EQ(ByteToChar(' '), U'\u0120');
  EXPECT_EQ(ByteToChar('\n'), U'\u010A');
  EXPECT_EQ(ByteToChar(0), U'\u0100');
  EXPECT_EQ(ByteToChar(0x7F), U'\u0121');
  EXPECT_EQ(ByteToChar(0xAD), U'\u0143');
  EXPECT_EQ(ByteToChar(0xFF), U'\u00FF');
  std::string bytes;
  EXPECT_TRUE(MappedToBytes("\u0120the\u010A", &bytes));
  EXPECT_EQ(bytes, " the\n");
  EXPECT_FALSE(MappedToBytes("a b", &bytes));
}

}  // namespace
}  // namespace longhaul::data
