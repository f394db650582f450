// Cuts a piece of text into the words that BPE works on. Each step cuts the words of the step before.
// The scanners are equal to the published regexes (FORMATS.md section 5), proved against PCRE2 by
// tests/worker/data/pre_tokenizer_test.cc. Thread-safe: no state.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace longhaul::data {

enum class PreTokenizerStep : uint8_t {
  kDigitsIndividual,  // every \p{N} alone
  kDigitsRuns,        // runs of \p{N} apart from the rest
  kGpt2,              // ByteLevel's own regex
  kLlama3,            // numbers in groups of three
  kQwen2,             // as kLlama3, numbers one by one
};

// The published regex that a scanner is equal to; "" for the steps of digits, which are no Split.
const char* PreTokenizerRegex(PreTokenizerStep step);

// Replaces *ends by the end offset of each word of `text`, ascending; the last is text.size(). Nothing for an empty
// text. `scratch` is working memory that a caller may reuse. REQUIRES: valid UTF-8.
void PreTokenize(const std::vector<PreTokenizerStep>& steps, std::string_view text, std::vector<size_t>* ends,
                 std::vector<size_t>* scratch);

}  // namespace longhaul::data
