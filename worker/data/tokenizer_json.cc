// Tokenizer from a Hugging Face folder: tokenizer.json, tokenizer_config.json, chat_template.jinja.
#include "worker/data/tokenizer_json.h"

#include <optional>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/json.h"
#include "worker/data/tokenizer.h"

namespace longhaul::data {
namespace {

absl::Status Unsupported(const std::string& what) {
  return MakeError(absl::StatusCode::kUnimplemented, "MODEL_UNSUPPORTED", "tokenizer.json: " + what);
}

absl::Status Invalid(const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL", "tokenizer.json: " + what);
}

const Json& Field(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  auto it = object.find(key);
  return it == object.end() ? null : *it;
}

bool Flag(const Json& object, const char* key, bool otherwise) {
  const Json& value = Field(object, key);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

std::string Text(const Json& object, const char* key) {
  const Json& value = Field(object, key);
  return value.is_string() ? value.get<std::string>() : "";
}

// Names come from the file: a message quotes a bounded part.
std::string Quoted(const std::string& name) { return "\"" + name.substr(0, 200) + "\""; }

// An id of the vocabulary's possible range, -1 where it is none.
int32_t IdOf(const Json& value) {
  if (!value.is_number_integer()) return -1;
  if (value.is_number_unsigned() && value.get<uint64_t>() >= static_cast<uint64_t>(limits::kMaxVocabSize)) return -1;
  const auto id = value.get<int64_t>();
  return id >= 0 && id < limits::kMaxVocabSize ? static_cast<int32_t>(id) : -1;
}

absl::Status ReadNormalizer(const Json& normalizer, TokenizerSource* source) {
  if (normalizer.is_null()) return absl::OkStatus();
  const std::string type = Text(normalizer, "type");
  if (type == "NFC") {
    source->nfc = true;
    return absl::OkStatus();
  }
  if (type != "Sequence") return Unsupported("normalizer " + Quoted(type) + " (only NFC is known)");
  for (const Json& part : Field(normalizer, "normalizers")) LH_RETURN_IF_ERROR(ReadNormalizer(part, source));
  return absl::OkStatus();
}

absl::Status ReadSplit(const Json& split, TokenizerSource* source) {
  const std::string regex = Text(Field(split, "pattern"), "Regex");
  if (Text(split, "behavior") != "Isolated" || Flag(split, "invert", false)) {
    return Unsupported("pre_tokenizer Split with behavior " + Quoted(Text(split, "behavior")) +
                       (Flag(split, "invert", false) ? " inverted" : ""));
  }
  for (PreTokenizerStep step : {PreTokenizerStep::kLlama3, PreTokenizerStep::kQwen2, PreTokenizerStep::kGpt2}) {
    if (regex != PreTokenizerRegex(step)) continue;
    source->steps.push_back(step);
    return absl::OkStatus();
  }
  return Unsupported("pre_tokenizer Split with pattern " + Quoted(Field(split, "pattern").dump()));
}

// `byte_level`: set once a ByteLevel has been seen, which must be the last step.
absl::Status ReadPreTokenizer(const Json& pre, TokenizerSource* source, bool* byte_level) {
  const std::string type = Text(pre, "type");
  if (type == "Sequence") {
    for (const Json& part : Field(pre, "pretokenizers")) {
      LH_RETURN_IF_ERROR(ReadPreTokenizer(part, source, byte_level));
    }
    return absl::OkStatus();
  }
  if (*byte_level) return Unsupported("pre_tokenizer " + Quoted(type) + " after ByteLevel");
  if (type == "Digits") {
    source->steps.push_back(Flag(pre, "individual_digits", false) ? PreTokenizerStep::kDigitsIndividual
                                                                  : PreTokenizerStep::kDigitsRuns);
    return absl::OkStatus();
  }
  if (type == "Split") return ReadSplit(pre, source);
  if (type == "ByteLevel") {
    *byte_level = true;
    if (Flag(pre, "add_prefix_space", true)) return Unsupported("pre_tokenizer ByteLevel with add_prefix_space");
    if (Flag(pre, "use_regex", true)) source->steps.push_back(PreTokenizerStep::kGpt2);
    return absl::OkStatus();
  }
  return Unsupported("pre_tokenizer " + Quoted(type));
}

absl::Status ReadTemplate(const Json& processor, TokenizerSource* source) {
  const Json& specials = Field(processor, "special_tokens");
  bool before = true;
  for (const Json& part : Field(processor, "single")) {
    if (!Field(part, "Sequence").is_null()) {
      before = false;
      continue;
    }
    const std::string name = Text(Field(part, "SpecialToken"), "id");
    const Json& ids = Field(Field(specials, name.c_str()), "ids");
    if (!ids.is_array()) return Invalid("post_processor names special token " + Quoted(name) + " without ids");
    for (const Json& value : ids) {
      const int32_t id = IdOf(value);
      if (id < 0) return Invalid("post_processor has a bad id for " + Quoted(name));
      (before ? source->prefix_ids : source->suffix_ids).push_back(id);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const Json& processor, TokenizerSource* source) {
  if (processor.is_null()) return absl::OkStatus();
  const std::string type = Text(processor, "type");
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets, adds no token
  if (type == "TemplateProcessing") return ReadTemplate(processor, source);
  if (type != "Sequence") return Unsupported("post_processor " + Quoted(type));
  for (const Json& part : Field(processor, "processors")) LH_RETURN_IF_ERROR(ReadPostProcessor(part, source));
  return absl::OkStatus();
}

absl::Status ReadMerges(const Json& merges, TokenizerSource* source) {
  if (!merges.is_array()) return Invalid("model.merges must be an array");
  source->merges.reserve(merges.size());
  for (const Json& merge : merges) {
    const std::string at = "model.merges[" + std::to_string(source->merges.size()) + "]";
    if (merge.is_array()) {
      if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
        return Invalid(at + " must be a pair of strings");
      }
      source->merges.emplace_back(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
      continue;
    }
    if (!merge.is_string()) return Invalid(at + " must be a string or a pair");
    const std::string_view text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      return Invalid(at + " must be two parts and one space");
    }
    source->merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const Json& vocab, TokenizerSource* source) {
  if (!vocab.is_object()) return Invalid("model.vocab must be an object");
  int32_t largest = -1;
  for (const auto& [token, value] : vocab.items()) {
    const int32_t id = IdOf(value);
    if (id < 0) {
      return Invalid("model.vocab: id of " + Quoted(token) + " must be 0 to " +
                     std::to_string(limits::kMaxVocabSize - 1));
    }
    largest = std::max(largest, id);
  }
  // Real vocabularies have few holes; a lone huge id would only buy memory.
  if (largest >= 0 && static_cast<size_t>(largest) > 2 * vocab.size() + 65'536) {
    return Invalid("model.vocab: id " + std::to_string(largest) + " with only " + std::to_string(vocab.size()) +
                   " tokens");
  }
  source->tokens.resize(static_cast<size_t>(largest + 1));
  for (auto it = vocab.begin(); it != vocab.end(); ++it) {
    std::string_view& slot = source->tokens[static_cast<size_t>(IdOf(it.value()))];
    if (!slot.empty()) return Invalid("model.vocab: id " + it.value().dump() + " stands twice");
    slot = it.key();
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const Json& model, TokenizerSource* source) {
  const Json& type = Field(model, "type");
  if (!type.is_null() && Text(model, "type") != "BPE") return Unsupported("model type " + Quoted(type.dump()));
  if (Flag(model, "byte_fallback", false)) return Unsupported("BPE with byte_fallback (SentencePiece style)");
  if (Field(model, "dropout").is_number() && Field(model, "dropout").get<double>() != 0) {
    return Unsupported("BPE with dropout");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!Text(model, key).empty()) return Unsupported(std::string("BPE with ") + key);
  }
  source->ignore_merges = Flag(model, "ignore_merges", false);
  LH_RETURN_IF_ERROR(ReadVocabulary(Field(model, "vocab"), source));
  LH_RETURN_IF_ERROR(ReadMerges(Field(model, "merges"), source));
  if (const std::string unk = Text(model, "unk_token"); !unk.empty()) {
    if (Flag(model, "fuse_unk", false)) return Unsupported("BPE with fuse_unk");
    const Json& id = Field(Field(model, "vocab"), unk.c_str());
    if (IdOf(id) < 0) return Invalid("model.unk_token " + Quoted(unk) + " is not in model.vocab");
    source->model_unk_id = IdOf(id);
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& added, TokenizerSource* source) {
  if (added.is_null()) return absl::OkStatus();
  if (!added.is_array()) return Invalid("added_tokens must be an array");
  for (const Json& entry : added) {
    AddedToken token;
    token.content = Text(entry, "content");
    token.id = IdOf(Field(entry, "id"));
    if (token.id < 0 || token.content.empty()) {
      return Invalid("added_tokens[" + std::to_string(source->added.size()) + "] needs content and an id of 0 to " +
                     std::to_string(limits::kMaxVocabSize - 1));
    }
    token.special = Flag(entry, "special", false);
    token.normalized = Flag(entry, "normalized", !token.special);
    token.lstrip = Flag(entry, "lstrip", false);
    token.rstrip = Flag(entry, "rstrip", false);
    token.single_word = Flag(entry, "single_word", false);
    source->added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// bos_token and its kin are a string, or an object with "content".
absl::Status ReadNamedToken(const Json& config, const char* key, const TokenizerSource& source, int32_t* id) {
  const Json& value = Field(config, key);
  if (value.is_null()) return absl::OkStatus();
  const std::string text = value.is_string() ? value.get<std::string>() : Text(value, "content");
  for (const AddedToken& token : source.added) {
    if (token.content == text) {
      *id = token.id;
      return absl::OkStatus();
    }
  }
  for (size_t i = 0; i < source.tokens.size(); ++i) {
    if (!text.empty() && source.tokens[i] == text) {
      *id = static_cast<int32_t>(i);
      return absl::OkStatus();
    }
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL",
                   std::string("tokenizer_config.json: ") + key + " " + Quoted(text) + " is not in the vocabulary");
}

void ReadTemplates(const Json& value, TokenizerSource* source) {
  if (value.is_string()) source->chat_template = value.get<std::string>();
  if (!value.is_array()) return;
  for (const Json& entry : value) {
    if (Text(entry, "name") == "default") source->chat_template = Text(entry, "template");
    if (Text(entry, "name") == "tool_use") source->tool_chat_template = Text(entry, "template");
  }
}

}  // namespace

absl::StatusOr<Tokenizer> TokenizerFromJson(const TokenizerFiles& files) {
  auto parsed = ParseJson(files.tokenizer_json, limits::kMaxTokenizerJsonValues);
  if (!parsed.ok()) return Annotate(parsed.status(), files.name + ": tokenizer.json");
  const Json root = *std::move(parsed);
  if (!root.is_object() || !Field(root, "model").is_object()) return Invalid("needs an object \"model\"");
  TokenizerSource source;
  source.name = files.name;
  LH_RETURN_IF_ERROR(ReadModel(Field(root, "model"), &source));
  LH_RETURN_IF_ERROR(ReadAddedTokens(Field(root, "added_tokens"), &source));
  LH_RETURN_IF_ERROR(ReadNormalizer(Field(root, "normalizer"), &source));
  bool byte_level = false;
  LH_RETURN_IF_ERROR(ReadPreTokenizer(Field(root, "pre_tokenizer"), &source, &byte_level));
  if (!byte_level) return Unsupported("a pre_tokenizer without ByteLevel");
  LH_RETURN_IF_ERROR(ReadPostProcessor(Field(root, "post_processor"), &source));
  if (const std::string decoder = Text(Field(root, "decoder"), "type"); decoder != "ByteLevel") {
    return Unsupported("decoder " + Quoted(decoder));
  }
  Json config;
  if (!files.tokenizer_config_json.empty()) {
    auto config_or = ParseJson(files.tokenizer_config_json, limits::kMaxTokenizerJsonValues);
    if (!config_or.ok()) return Annotate(config_or.status(), files.name + ": tokenizer_config.json");
    config = *std::move(config_or);
  }
  LH_RETURN_IF_ERROR(ReadNamedToken(config, "bos_token", source, &source.bos_id));
  LH_RETURN_IF_ERROR(ReadNamedToken(config, "eos_token", source, &source.eos_id));
  LH_RETURN_IF_ERROR(ReadNamedToken(config, "pad_token", source, &source.pad_id));
  LH_RETURN_IF_ERROR(ReadNamedToken(config, "unk_token", source, &source.unk_id));
  ReadTemplates(Field(config, "chat_template"), &source);
  if (!files.chat_template.empty()) source.chat_template = files.chat_template;
  return Tokenizer::Create(source);
}

absl::StatusOr<Tokenizer> Tokenizer::FromHuggingFaceFolder(const std::string& folder) {
  TokenizerFiles files;
  files.name = folder;
  LH_ASSIGN_OR_RETURN(files.tokenizer_json, ReadFile(JoinPath(folder, "tokenizer.json"), limits::kMaxJsonFileBytes));
  const std::pair<const char*, std::string*> optional_files[] = {
      {"tokenizer_config.json", &files.tokenizer_config_json}, {"chat_template.jinja", &files.chat_template}};
  for (const auto& [name, text] : optional_files) {
    const std::string path = JoinPath(folder, name);
    if (!FileExists(path)) continue;
    LH_ASSIGN_OR_RETURN(*text, ReadFile(path, limits::kMaxJsonFileBytes));
  }
  return TokenizerFromJson(files);
}

}  // namespace longhaul::data
