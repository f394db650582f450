// Tokenizer from GGUF metadata: tokenizer.ggml.* of model "gpt2" (byte-level BPE).
#include <optional>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/tokenizer.h"
#include "worker/formats/file_error.h"
#include "worker/formats/gguf.h"

namespace longhaul::data {
namespace {

using formats::BadFile;
using formats::GgufFile;
using formats::GgufValue;
using formats::Unsupported;

// llama.cpp's token types that matter here.
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;

// What the name under tokenizer.ggml.pre stands for.
struct PreFacts {
  const char* name;
  std::vector<PreTokenizerStep> steps;
  bool nfc;
  bool ignore_merges;
  bool add_bos;  // where tokenizer.ggml.add_bos_token is absent
};

const std::vector<PreFacts>& PreTable() {
  static const std::vector<PreFacts> table = {
      {"smollm", {PreTokenizerStep::kDigitsIndividual, PreTokenizerStep::kGpt2}, false, false, false},
      {"gpt-2", {PreTokenizerStep::kGpt2}, false, false, false},
      {"llama-bpe", {PreTokenizerStep::kLlama3}, false, true, true},
      {"qwen2", {PreTokenizerStep::kQwen2}, true, false, false},
  };
  return table;
}

absl::Status ReadPre(const GgufFile& file, TokenizerSource* source, bool* add_bos) {
  LH_ASSIGN_OR_RETURN(const std::string model, file.String("tokenizer.ggml.model"));
  if (model != "gpt2") {
    return Unsupported(file.path(), "tokenizer.ggml.model " + formats::Printable(model) + " (only gpt2 is known)");
  }
  LH_ASSIGN_OR_RETURN(const std::string pre, file.String("tokenizer.ggml.pre", "gpt-2"));
  for (const PreFacts& facts : PreTable()) {
    if (pre != facts.name) continue;
    source->steps = facts.steps;
    source->nfc = facts.nfc;
    source->ignore_merges = facts.ignore_merges;
    *add_bos = facts.add_bos;
    return absl::OkStatus();
  }
  return Unsupported(file.path(), "tokenizer.ggml.pre " + formats::Printable(pre));
}

absl::Status ReadTokens(const GgufFile& file, TokenizerSource* source) {
  const GgufValue* tokens = file.FindValue("tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->strings().empty()) {
    return BadFile(file.path(), "tokenizer.ggml.tokens must be an array of strings");
  }
  if (tokens->size() > limits::kMaxVocabSize) {
    return BadFile(file.path(), "tokenizer.ggml.tokens has " + std::to_string(tokens->size()) +
                                    " entries; the limit is " + std::to_string(limits::kMaxVocabSize));
  }
  source->tokens = tokens->strings();
  const GgufValue* types = file.FindValue("tokenizer.ggml.token_type");
  if (types == nullptr) return absl::OkStatus();
  const auto kinds = types->AsIntArray();
  if (!kinds.has_value() || kinds->size() != source->tokens.size()) {
    return BadFile(file.path(), "tokenizer.ggml.token_type must be integers, one for each of " +
                                    std::to_string(source->tokens.size()) + " tokens");
  }
  for (size_t id = 0; id < kinds->size(); ++id) {
    if ((*kinds)[id] != kControl && (*kinds)[id] != kUserDefined) continue;
    AddedToken token;
    token.content = std::string(source->tokens[id]);
    token.id = static_cast<int32_t>(id);
    token.special = (*kinds)[id] == kControl;
    source->added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const GgufFile& file, TokenizerSource* source) {
  const GgufValue* merges = file.FindValue("tokenizer.ggml.merges");
  if (merges == nullptr) return BadFile(file.path(), "tokenizer.ggml.merges is missing");
  source->merges.reserve(merges->strings().size());
  for (std::string_view merge : merges->strings()) {
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      return BadFile(file.path(), "tokenizer.ggml.merges[" + std::to_string(source->merges.size()) + "] is " +
                                      formats::Printable(merge) + "; must be two parts and one space");
    }
    source->merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> ReadId(const GgufFile& file, const std::string& key, size_t vocab) {
  LH_ASSIGN_OR_RETURN(const int64_t id, file.Int(key, -1));
  // Some writers put 2^32 - 1 for "none".
  if (id == -1 || id == UINT32_MAX) return -1;
  if (id < 0 || id >= static_cast<int64_t>(vocab)) {
    return BadFile(file.path(), key + " is " + std::to_string(id) + "; the vocabulary has " + std::to_string(vocab));
  }
  return static_cast<int32_t>(id);
}

bool ReadFlag(const GgufFile& file, std::string_view key, bool absent) {
  const GgufValue* value = file.FindValue(key);
  return value == nullptr ? absent : value->AsBool().value_or(absent);
}

}  // namespace

absl::StatusOr<TokenizerSource> TokenizerSourceFromGguf(const GgufFile& file) {
  TokenizerSource source;
  source.name = file.path();
  bool add_bos = false;
  LH_RETURN_IF_ERROR(ReadPre(file, &source, &add_bos));
  LH_RETURN_IF_ERROR(ReadTokens(file, &source));
  LH_RETURN_IF_ERROR(ReadMerges(file, &source));
  const std::pair<const char*, int32_t*> ids[] = {{"tokenizer.ggml.bos_token_id", &source.bos_id},
                                                  {"tokenizer.ggml.eos_token_id", &source.eos_id},
                                                  {"tokenizer.ggml.padding_token_id", &source.pad_id},
                                                  {"tokenizer.ggml.unknown_token_id", &source.unk_id}};
  for (const auto& [key, id] : ids) {
    LH_ASSIGN_OR_RETURN(*id, ReadId(file, key, source.tokens.size()));
  }
  if (ReadFlag(file, "tokenizer.ggml.add_space_prefix", false)) {
    return Unsupported(file.path(), "tokenizer.ggml.add_space_prefix for a byte-level tokenizer");
  }
  if (ReadFlag(file, "tokenizer.ggml.add_bos_token", add_bos) && source.bos_id >= 0) {
    source.prefix_ids.push_back(source.bos_id);
  }
  if (ReadFlag(file, "tokenizer.ggml.add_eos_token", false) && source.eos_id >= 0) {
    source.suffix_ids.push_back(source.eos_id);
  }
  LH_ASSIGN_OR_RETURN(source.chat_template, file.String("tokenizer.chat_template", ""));
  LH_ASSIGN_OR_RETURN(source.tool_chat_template, file.String("tokenizer.chat_template.tool_use", ""));
  return source;
}

absl::StatusOr<Tokenizer> Tokenizer::FromGguf(const GgufFile& file) {
  LH_ASSIGN_OR_RETURN(const TokenizerSource source, TokenizerSourceFromGguf(file));
  return Create(source);
}

}  // namespace longhaul::data
