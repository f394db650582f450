// A tokenizer's description as tokenizer.json and tokenizer_config.json: what tokenizer_json.cc reads, written.
#include <set>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/json.h"
#include "worker/data/tokenizer_json.h"
#include "worker/data/unicode.h"
#include "worker/formats/model_source.h"

namespace longhaul::data {
namespace {

// The text of an id: an added token's own, else the vocabulary's.
std::string TextOf(const TokenizerSource& source, int32_t id) {
  for (const AddedToken& token : source.added) {
    if (token.id == id) return token.content;
  }
  return std::string(source.tokens[static_cast<size_t>(id)]);
}

absl::StatusOr<Json> VocabularyJson(const TokenizerSource& source) {
  Json vocab = Json::object();
  std::set<std::string_view> seen;  // ordered_json looks keys up one by one
  auto& entries = vocab.get_ref<Json::object_t&>();
  entries.reserve(source.tokens.size());
  for (size_t id = 0; id < source.tokens.size(); ++id) {
    const std::string_view text = source.tokens[id];
    if (text.empty()) continue;
    if (!IsValidUtf8(text)) return InvalidTokenizer(source, "token " + std::to_string(id) + " is not UTF-8");
    if (!seen.insert(text).second)
      return InvalidTokenizer(source, "token " + std::to_string(id) + " has an earlier one's text");
    entries.emplace_back(std::string(text), id);
  }
  return vocab;
}

Json AddedTokensJson(const TokenizerSource& source) {
  Json added = Json::array();
  for (const AddedToken& token : source.added) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", token.single_word},
                     {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  return added;
}

Json ByteLevelJson(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", use_regex}};
}

Json PreTokenizerJson(const TokenizerSource& source) {
  Json steps = Json::array();
  for (size_t i = 0; i < source.steps.size(); ++i) {
    const PreTokenizerStep step = source.steps[i];
    const std::string regex = PreTokenizerRegex(step);
    if (regex.empty()) {
      steps.push_back({{"type", "Digits"}, {"individual_digits", step == PreTokenizerStep::kDigitsIndividual}});
    } else if (step == PreTokenizerStep::kGpt2 && i + 1 == source.steps.size()) {
      steps.push_back(ByteLevelJson(true));
      return {{"type", "Sequence"}, {"pretokenizers", steps}};
    } else {
      steps.push_back(
          {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}});
    }
  }
  steps.push_back(ByteLevelJson(false));
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

Json PostProcessorJson(const TokenizerSource& source) {
  if (source.prefix_ids.empty() && source.suffix_ids.empty()) return ByteLevelJson(false);
  Json specials = Json::object();
  const auto add = [&](const std::vector<int32_t>& ids, int type, Json* parts) {
    for (int32_t id : ids) {
      const std::string text = TextOf(source, id);
      specials[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
      parts->push_back({{"SpecialToken", {{"id", text}, {"type_id", type}}}});
    }
  };
  const auto sequence = [&](const char* name, int type, Json* parts) {
    add(source.prefix_ids, type, parts);
    parts->push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
    add(source.suffix_ids, type, parts);
  };
  Json single = Json::array(), pair = Json::array();
  sequence("A", 0, &single);
  sequence("A", 0, &pair);
  sequence("B", 1, &pair);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

absl::StatusOr<Json> ModelJson(const TokenizerSource& source) {
  LH_ASSIGN_OR_RETURN(Json vocab, VocabularyJson(source));
  Json merges = Json::array();
  for (const auto& [left, right] : source.merges) {
    if (!IsValidUtf8(left) || !IsValidUtf8(right)) {
      return InvalidTokenizer(source, "merge " + std::to_string(merges.size()) + " is not UTF-8");
    }
    merges.push_back(Json::array({std::string(left), std::string(right)}));
  }
  Json unk;
  if (source.model_unk_id >= 0) unk = std::string(source.tokens[static_cast<size_t>(source.model_unk_id)]);
  return Json{{"type", "BPE"},
              {"dropout", nullptr},
              {"unk_token", unk},
              {"continuing_subword_prefix", nullptr},
              {"end_of_word_suffix", nullptr},
              {"fuse_unk", false},
              {"byte_fallback", false},
              {"ignore_merges", source.ignore_merges},
              {"vocab", std::move(vocab)},
              {"merges", std::move(merges)}};
}

Json ConfigJson(const TokenizerSource& source) {
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const std::pair<const char*, int32_t> named[] = {{"bos_token", source.bos_id},
                                                   {"eos_token", source.eos_id},
                                                   {"pad_token", source.pad_id},
                                                   {"unk_token", source.unk_id}};
  for (const auto& [key, id] : named) {
    if (id >= 0) config[key] = TextOf(source, id);
  }
  if (!source.tool_chat_template.empty()) {
    config["chat_template"] = {{{"name", "default"}, {"template", source.chat_template}},
                               {{"name", "tool_use"}, {"template", source.tool_chat_template}}};
  } else if (!source.chat_template.empty()) {
    config["chat_template"] = source.chat_template;
  }
  return config;
}

std::string Dump(const Json& json) { return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"; }

absl::Status CopyFiles(const std::string& from, const std::string& to) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"}) {
    if (!FileExists(JoinPath(from, name))) continue;
    LH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(JoinPath(from, name), limits::kMaxJsonFileBytes));
    LH_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(to, name), bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerFiles> TokenizerToJson(const TokenizerSource& source) {
  LH_ASSIGN_OR_RETURN(Json model, ModelJson(source));
  Json normalizer;
  if (source.nfc) normalizer = {{"type", "NFC"}};
  const Json root = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", AddedTokensJson(source)},
                     {"normalizer", normalizer},
                     {"pre_tokenizer", PreTokenizerJson(source)},
                     {"post_processor", PostProcessorJson(source)},
                     {"decoder", ByteLevelJson(true)},
                     {"model", std::move(model)}};
  return TokenizerFiles{source.name, Dump(root), Dump(ConfigJson(source)), ""};
}

absl::Status ExportTokenizer(const formats::ModelSource& model, const std::string& folder) {
  if (model.gguf() == nullptr) return CopyFiles(model.folder(), folder);
  LH_ASSIGN_OR_RETURN(const TokenizerSource source, TokenizerSourceFromGguf(*model.gguf()));
  LH_ASSIGN_OR_RETURN(const TokenizerFiles files, TokenizerToJson(source));
  LH_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(folder, "tokenizer.json"), files.tokenizer_json));
  return WriteFileAtomic(JoinPath(folder, "tokenizer_config.json"), files.tokenizer_config_json);
}

}  // namespace longhaul::data
