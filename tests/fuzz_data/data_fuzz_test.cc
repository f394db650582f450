// Damaged tokenizers, templates and datasets: a fixed count of mutations from a fixed seed. None may crash (run under
// the sanitizers too) or allocate much beyond its size; whatever is accepted must encode, render and decode.
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "gtest/gtest.h"
#include "tests/fuzz/allocation_meter.h"
#include "tests/fuzz/fuzz_seed.h"
#include "tests/worker/data/test_support.h"
#include "worker/data/dataset.h"
#include "worker/data/jinja/template.h"

namespace longhaul::data {
namespace {

constexpr int64_t kMaxExtraBytes = 64 << 20;
constexpr const char* kLine = "it's 12  <|im_start|>caf\u0065\u0301\n\t\U0001F642 longhaul<mask> x";

// Damages bytes, JSON punctuation and template words.
class Mutator {
 public:
  explicit Mutator(std::string seed) : seed_(std::move(seed)), random_(FuzzSeed()) {}

  std::string Next() {
    std::string bytes = seed_;
    const size_t changes = 1 + Draw(4);
    for (size_t i = 0; i < changes; ++i) Change(&bytes);
    return bytes;
  }

 private:
  size_t Draw(size_t n) { return n == 0 ? 0 : random_() % n; }

  void Change(std::string* bytes) {
    static const std::vector<std::string> words = {"{%",
                                                   "%}",
                                                   "{{",
                                                   "}}",
                                                   "-%}",
                                                   "{#",
                                                   "#}",
                                                   "if ",
                                                   "for x in ",
                                                   "endif",
                                                   "endfor",
                                                   "else",
                                                   "set ",
                                                   "macro ",
                                                   "[",
                                                   "]",
                                                   "(",
                                                   ")",
                                                   "|",
                                                   ".",
                                                   "~",
                                                   "**",
                                                   "//",
                                                   "%",
                                                   "not ",
                                                   "in ",
                                                   "is ",
                                                   "or ",
                                                   "messages",
                                                   "range(9999999)",
                                                   "x*99999999",
                                                   "'",
                                                   "\"",
                                                   "\\",
                                                   "tojson",
                                                   "null",
                                                   "true",
                                                   "{",
                                                   "}",
                                                   ",",
                                                   ":",
                                                   "-1",
                                                   "1e999",
                                                   "99999999999999999999",
                                                   "\\ud800",
                                                   "\xFF",
                                                   "\xC3",
                                                   "\n",
                                                   "[[[[[[[[",
                                                   "{\"a\":",
                                                   "_",
                                                   "Ġ",
                                                   "loop",
                                                   "split('')",
                                                   "replace('','x')",
                                                   "[::-1]",
                                                   "[::0]"};
    const size_t at = Draw(bytes->size() + 1);
    switch (Draw(6)) {
      case 0:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << Draw(8)));
        break;
      case 1:
        bytes->erase(at, 1 + Draw(24));
        break;
      case 2:
        bytes->insert(at, bytes->substr(Draw(bytes->size() + 1), 1 + Draw(80)));
        break;
      case 3:
        if (Draw(8) == 0) bytes->resize(at);
        break;
      default:
        bytes->insert(at, words[Draw(words.size())]);
        break;
    }
  }

  const std::string seed_;
  std::mt19937 random_;
};

// Runs `read` on `count` mutations; checks its memory and the form of its errors.
int Replay(const std::string& seed, int count, const std::function<absl::Status(const std::string&)>& read) {
  Mutator mutator(seed);
  int accepted = 0;
  for (int i = 0; i < count; ++i) {
    const std::string bytes = mutator.Next();
    ResetAllocationPeak();
    const int64_t before = AllocatedBytes();
    const absl::Status status = read(bytes);
    const int64_t extra = AllocatedBytesPeak() - before;
    EXPECT_LE(extra, 32 * static_cast<int64_t>(bytes.size()) + kMaxExtraBytes) << "mutation " << i;
    if (status.ok()) {
      ++accepted;
      continue;
    }
    EXPECT_FALSE(status.message().empty()) << "mutation " << i;
    EXPECT_FALSE(ErrorReason(status).empty()) << "mutation " << i << ": " << status;
  }
  EXPECT_LT(accepted, count);  // damage that never hurts would test nothing
  return accepted;
}

absl::Status UseTokenizer(const absl::StatusOr<Tokenizer>& tokenizer) {
  if (!tokenizer.ok()) return tokenizer.status();
  const auto encoding = tokenizer->EncodeWithSpans(kLine, {.add_special = true});
  if (!encoding.ok()) return encoding.status();
  EXPECT_EQ(encoding->ids.size(), encoding->spans.size());
  for (int32_t id : encoding->ids) {
    EXPECT_GE(id, 0);
    EXPECT_LT(id, tokenizer->vocab_size());
  }
  tokenizer->Decode(encoding->ids, false);
  return absl::OkStatus();
}

TEST(DataFuzzTest, TokenizerJson) {
  for (const char* style : {"llama3", "qwen2", "smollm"}) {
    TokenizerFiles files = GoldenTokenizerFiles(style, "");
    // Most damage goes to the part before the vocabulary, which is short: a small vocabulary keeps the rest in reach.
    Json root = Json::parse(files.tokenizer_json);
    Json vocab = Json::object();
    for (const auto& [token, id] : root["model"]["vocab"].items()) {
      if (id.get<int64_t>() < 270) vocab[token] = id;
    }
    root["model"]["vocab"] = vocab;
    root["model"]["merges"].get_ref<Json::array_t&>().resize(5);
    const int accepted = Replay(root.dump(), 1000, [&files](const std::string& bytes) {
      files.tokenizer_json = bytes;
      files.tokenizer_config_json = "{}";
      return UseTokenizer(TokenizerFromJson(files));
    });
    EXPECT_GT(accepted, 20) << style;
  }
}

TEST(DataFuzzTest, TokenizerConfig) {
  TokenizerFiles files = GoldenTokenizerFiles("qwen2", "");
  const std::string seed =
      R"({"bos_token": null, "eos_token": {"content": "<|im_end|>", "special": true}, "pad_token": "<|endoftext|>",)"
      R"( "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}]})";
  EXPECT_GT(Replay(seed, 500,
                   [&files](const std::string& bytes) {
                     files.tokenizer_config_json = bytes;
                     return UseTokenizer(TokenizerFromJson(files));
                   }),
            20);
}

TEST(DataFuzzTest, TokenizerGguf) {
  const std::string seed = GoldenText("data_smollm.gguf");
  Replay(seed, 500, [](const std::string& bytes) {
    const auto file = formats::GgufFile::FromBytes(bytes, "fuzz.gguf");
    return file.ok() ? UseTokenizer(Tokenizer::FromGguf(*file)) : file.status();
  });
}

TEST(DataFuzzTest, ChatTemplates) {
  jinja::RenderOptions options;
  options.limits.max_steps = 200'000;
  options.limits.max_bytes = 4 << 20;
  for (const Json& chat : GoldenTemplates()["chats"]) {
    const Json& golden = chat["cases"][24];
    std::vector<std::pair<std::string, jinja::Value>> variables = {
        {"messages", jinja::Value::FromJson(golden["messages"])},
        {"tools", jinja::Value::FromJson(chat["cases"][2]["tools"])},
        {"add_generation_prompt", jinja::Value::Bool(true)}};
    for (const auto& [name, text] : chat["special"].items()) variables.emplace_back(name, jinja::Value::FromJson(text));
    const int accepted = Replay(chat["template"].get<std::string>(), 800, [&](const std::string& bytes) {
      const auto parsed = jinja::Template::Parse(bytes);
      return parsed.ok() ? parsed->Render(variables, options).status() : parsed.status();
    });
    EXPECT_GT(accepted, 20) << chat["name"];
  }
}

TEST(DataFuzzTest, TemplateSnippets) {
  jinja::RenderOptions options;
  options.limits.max_steps = 50'000;
  options.limits.max_bytes = 2 << 20;
  const Json& golden = GoldenTemplates();
  std::vector<std::pair<std::string, jinja::Value>> variables;
  for (const auto& [name, value] : golden["variables"].items())
    variables.emplace_back(name, jinja::Value::FromJson(value));
  for (const Json& snippet : golden["snippets"]) {
    Replay(snippet["source"].get<std::string>(), 150, [&](const std::string& bytes) {
      const auto parsed = jinja::Template::Parse(bytes);
      return parsed.ok() ? parsed->Render(variables, options).status() : parsed.status();
    });
  }
}

TEST(DataFuzzTest, DatasetLines) {
  const Tokenizer tokenizer = GoldenTokenizer("qwen2", "qwen2.5");
  const ChatTemplate chat = TemplateOf(tokenizer);
  const Json& conversations = GoldenTemplates()["chats"][0]["cases"];
  for (size_t index : {0u, 4u, 24u}) {
    Json line = {{"messages", conversations[index]["messages"]}, {"tools", conversations[2]["tools"]}};
    line["messages"].back()["weight"] = 1;
    const int accepted = Replay(line.dump(), 1000, [&](const std::string& bytes) {
      LineReader reader(&tokenizer, &chat, {});
      LineReader::Line read;
      LineError error;
      if (!reader.Read(bytes, &read, &error)) {
        EXPECT_FALSE(error.reason.empty());
        return MakeError(absl::StatusCode::kInvalidArgument, "BAD_LINE", error.reason);
      }
      EXPECT_EQ(read.example.ids.size(), read.example.train.size());
      return absl::OkStatus();
    });
    EXPECT_GT(accepted, 20);
  }
}

}  // namespace
}  // namespace longhaul::data
