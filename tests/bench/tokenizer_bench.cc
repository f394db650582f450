// Bytes a second of one core through the tokenizer, and how time grows with one line that has no space.
//
//   LONGHAUL_MODEL   a .gguf file; tests/golden/data_smollm.gguf where unset, whose vocabulary is tiny
//   LONGHAUL_TEXT    a UTF-8 file for the Text benchmarks; words made up from a fixed seed where unset
//
// Every iteration begins with an empty cache of words, as a process does.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/env.h"
#include "worker/data/tokenizer.h"
#include "worker/formats/gguf.h"

namespace longhaul::data {
namespace {

constexpr int64_t kTextBytes = 16 << 20;

std::string FromEnvironment(const char* name, const std::string& otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

const Tokenizer& TheTokenizer() {
  static const Tokenizer& tokenizer = *[] {
    const auto file = formats::GgufFile::Open(
        FromEnvironment("LONGHAUL_MODEL", LONGHAUL_SOURCE_DIR "/tests/golden/data_smollm.gguf"));
    LH_CHECK(file.ok(), file.status().ToString());
    auto opened = Tokenizer::FromGguf(*file);
    LH_CHECK(opened.ok(), opened.status().ToString());
    return new Tokenizer(*std::move(opened));
  }();
  return tokenizer;
}

// Words of a made-up language, a few of them in most of the text, as in a real one.
std::string MadeUpText() {
  std::mt19937 random(1);
  std::vector<std::string> words(20'000);
  for (std::string& word : words) {
    for (uint32_t i = 0; i < 2 + random() % 9; ++i)
      word += "etaoinshrdlucmfwypvbgkjqxz"[random() % 26 * (random() % 26) / 26];
  }
  std::string text;
  while (static_cast<int64_t>(text.size()) < kTextBytes) {
    const uint64_t rank = uint64_t{random()} * (random() % 10'000) / 10'000 * (random() % 10'000) / 10'000;
    text += words[rank * words.size() >> 32];
    text += random() % 12 == 0 ? ".\n" : " ";
  }
  return text;
}

const std::string& Text() {
  static const std::string& text = *[] {
    const std::string path = FromEnvironment("LONGHAUL_TEXT", "");
    if (path.empty()) return new std::string(MadeUpText());
    auto read = ReadFile(path, int64_t{1} << 30);
    LH_CHECK(read.ok(), read.status().ToString());
    return new std::string(*std::move(read));
  }();
  return text;
}

void Report(benchmark::State& state, size_t bytes, size_t tokens) {
  state.SetBytesProcessed(static_cast<int64_t>(bytes) * static_cast<int64_t>(state.iterations()));
  state.counters["bytes_per_token"] = static_cast<double>(bytes) / static_cast<double>(tokens);
}

// Line by line, with spans, as a dataset is read.
void TextByLines(benchmark::State& state) {
  const std::string& text = Text();
  size_t tokens = 0;
  for (auto _ : state) {
    tokens = 0;
    BpeScratch scratch;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
      const auto encoding =
          TheTokenizer().EncodeWithSpans(std::string_view(text).substr(begin, end - begin), {}, &scratch);
      LH_CHECK(encoding.ok(), encoding.status().ToString());
      tokens += encoding->ids.size();
      begin = end;
    }
  }
  Report(state, text.size(), tokens);
}
BENCHMARK(TextByLines)->Unit(benchmark::kMillisecond);

void TextWhole(benchmark::State& state) {
  size_t tokens = 0;
  for (auto _ : state) {
    BpeScratch scratch;
    const auto ids = TheTokenizer().Encode(Text(), {}, &scratch);
    LH_CHECK(ids.ok(), ids.status().ToString());
    tokens = ids->size();
  }
  Report(state, Text().size(), tokens);
}
BENCHMARK(TextWhole)->Unit(benchmark::kMillisecond);

// One word of range(0) MB for BPE: linear where MB/s do not fall. `one_letter`: every pair is the same pair.
void OneWord(benchmark::State& state, bool one_letter) {
  std::mt19937 random(2);
  std::string text(static_cast<size_t>(state.range(0)) * 1'000'000, 'a');
  if (!one_letter) {
    for (char& c : text) c = "etaoinshrdlucmfwypvbgkjqxz"[random() % 26 * (random() % 26) / 26];
  }
  size_t tokens = 0;
  for (auto _ : state) {
    BpeScratch scratch;
    const auto ids = TheTokenizer().Encode(text, {}, &scratch);
    LH_CHECK(ids.ok(), ids.status().ToString());
    tokens = ids->size();
  }
  Report(state, text.size(), tokens);
}
BENCHMARK_CAPTURE(OneWord, letters, false)->Arg(1)->Arg(2)->Arg(5)->Arg(10)->Arg(20)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(OneWord, one_letter, true)->Arg(1)->Arg(10)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace longhaul::data

BENCHMARK_MAIN();
