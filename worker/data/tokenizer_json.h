// Tokenizer from the texts of a Hugging Face folder's files (FORMATS.md section 5).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/data/tokenizer.h"

namespace longhaul::data {

struct TokenizerFiles {
  std::string name;  // the folder, for messages
  std::string tokenizer_json;
  std::string tokenizer_config_json;  // "" = none
  std::string chat_template;          // chat_template.jinja, "" = none; overrides the one in the config
};

// Errors as Tokenizer::FromHuggingFaceFolder.
absl::StatusOr<Tokenizer> TokenizerFromJson(const TokenizerFiles& files);

}  // namespace longhaul::data
