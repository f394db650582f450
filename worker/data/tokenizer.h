// Text to token ids and back, equal to Hugging Face tokenizers' byte-level BPE.
//
// Encode: added tokens are cut out of the raw text (leftmost, longest), the rest is normalised, cut by the
// pre-tokenizer, and each word goes through BPE (FORMATS.md section 5).
// Tests: tests/worker/data/tokenizer_test.cc, tokenizer_golden_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/data/added_tokens.h"
#include "worker/data/bpe.h"
#include "worker/data/pre_tokenizer.h"

namespace longhaul::formats {
class GgufFile;
}

namespace longhaul::data {

// What a tokenizer is made of, whatever file it came from. The views must live through Tokenizer::Create only.
struct TokenizerSource {
  std::string name;                      // file, for messages
  std::vector<std::string_view> tokens;  // id -> mapped text; "" = no such id in the model's vocabulary
  std::vector<std::pair<std::string_view, std::string_view>> merges;  // in rank order
  std::vector<AddedToken> added;
  std::vector<PreTokenizerStep> steps;
  bool nfc = false;
  bool ignore_merges = false;
  int32_t model_unk_id = -1;        // what BPE emits for a byte without a token; -1: nothing
  std::vector<int32_t> prefix_ids;  // added by add_special: usually BOS or nothing
  std::vector<int32_t> suffix_ids;
  int32_t bos_id = -1;
  int32_t eos_id = -1;
  int32_t pad_id = -1;
  int32_t unk_id = -1;
  std::string chat_template;       // "" = none
  std::string tool_chat_template;  // the one named tool_use, "" = none
};

// INVALID_ARGUMENT, reason INVALID_MODEL: "<name>: tokenizer: <what>".
absl::Status InvalidTokenizer(const TokenizerSource& source, const std::string& what);

// The metadata of a GGUF. The views are the file's. Errors as Tokenizer::FromGguf.
absl::StatusOr<TokenizerSource> TokenizerSourceFromGguf(const formats::GgufFile& file);

struct EncodeOptions {
  bool add_special = false;   // what the post-processor adds; raw text wants it, a rendered template has its own
  bool parse_special = true;  // special tokens written in the text become their ids
};

// Bytes [begin, end) of the text that a token covers. Added prefix and suffix tokens cover nothing.
struct TokenSpan {
  int64_t begin = 0;
  int64_t end = 0;
};

struct Encoding {
  std::vector<int32_t> ids;
  std::vector<TokenSpan> spans;  // as long as ids
};

// Immutable; thread-safe, each thread with its own BpeScratch.
class Tokenizer {
 public:
  // INVALID_ARGUMENT (reason INVALID_MODEL) names what is wrong with the source.
  static absl::StatusOr<Tokenizer> Create(const TokenizerSource& source);
  // A folder with tokenizer.json (and tokenizer_config.json, chat_template.jinja where they are).
  // UNIMPLEMENTED (reason MODEL_UNSUPPORTED) names a model type, normalizer or pre-tokenizer that Longhaul lacks.
  static absl::StatusOr<Tokenizer> FromHuggingFaceFolder(const std::string& folder);
  static absl::StatusOr<Tokenizer> FromGguf(const formats::GgufFile& file);

  // INVALID_ARGUMENT where the text is not UTF-8 (names the byte) or has 2 GiB or more.
  // A scratch that is kept from call to call makes short texts much faster.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, const EncodeOptions& options,
                                              BpeScratch* scratch = nullptr) const;
  absl::StatusOr<Encoding> EncodeWithSpans(std::string_view text, const EncodeOptions& options,
                                           BpeScratch* scratch = nullptr) const;

  // Bytes that are no UTF-8 become U+FFFD. Unknown ids decode to nothing.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special) const;
  // The bytes of one token, which may be part of a character. "" for an unknown id. An added token goes through the
  // byte map where all of its characters are in it ("café" is caf and the byte E9), as in Hugging Face's decoder.
  std::string_view TokenBytes(int32_t id) const;

  int32_t TokenToId(std::string_view token) const;  // as in the vocabulary ("Ġthe", "<|im_end|>"); -1 = none
  std::string TokenText(int32_t id) const;          // the reverse; "" for an unknown id
  bool IsSpecial(int32_t id) const;
  int32_t bos_id() const { return bos_id_; }
  int32_t eos_id() const { return eos_id_; }
  int32_t pad_id() const { return pad_id_; }
  int32_t unk_id() const { return unk_id_; }
  int32_t vocab_size() const { return vocab_size_; }  // largest id + 1, added tokens included
  const std::string& chat_template() const { return chat_template_; }
  const std::string& tool_chat_template() const { return tool_chat_template_; }
  // bos_token, eos_token, pad_token, unk_token, those that exist, for the chat template.
  std::vector<std::pair<std::string, std::string>> SpecialTokenNames() const;
  // SHA-256 over everything above: two tokenizers of one digest give the same ids and the same rendered text.
  const std::string& digest() const { return digest_; }

 private:
  absl::Status EncodeInto(std::string_view text, const EncodeOptions& options, BpeScratch* scratch, Encoding* out,
                          bool with_spans) const;
  struct PlainSink;
  absl::Status EncodePlain(std::string_view text, size_t base, bool parse_special, PlainSink* sink) const;
  void EncodeWords(std::string_view text, PlainSink* sink) const;

  BpeModel bpe_;
  AddedTokenMatcher raw_matcher_;
  AddedTokenMatcher normalized_matcher_;
  std::vector<PreTokenizerStep> steps_;
  bool nfc_ = false;
  std::vector<int32_t> prefix_ids_, suffix_ids_;
  int32_t bos_id_ = -1, eos_id_ = -1, pad_id_ = -1, unk_id_ = -1, vocab_size_ = 0;
  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_map<int32_t, AddedToken> added_;
  std::vector<std::string> texts_;                        // id -> vocabulary text
  std::unordered_map<int32_t, std::string> added_bytes_;  // of every added token: what it decodes to
  std::string chat_template_, tool_chat_template_;
  std::string digest_;
};

// Bytes of tokens, one at a time, into whole characters: what is printed while a model speaks.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer* tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}
  // The text that is complete with this token; "" while a character is still open.
  std::string Append(int32_t id);
  // What is left at the end, incomplete characters as U+FFFD.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace longhaul::data
