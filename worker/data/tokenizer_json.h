// Tokenizers as the texts of a Hugging Face folder's files, both ways (FORMATS.md section 5).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/data/tokenizer.h"

namespace longhaul::formats {
class ModelSource;
}

namespace longhaul::data {

struct TokenizerFiles {
  std::string name;  // the folder, for messages
  std::string tokenizer_json;
  std::string tokenizer_config_json;  // "" = none
  std::string chat_template;          // chat_template.jinja, "" = none; overrides the one in the config
};

// Errors as Tokenizer::FromHuggingFaceFolder.
absl::StatusOr<Tokenizer> TokenizerFromJson(const TokenizerFiles& files);

// The files that give the same tokenizer back: the same digest. INVALID_ARGUMENT (reason INVALID_MODEL) where two ids
// have one text or a text is not UTF-8, which tokenizer.json cannot say.
absl::StatusOr<TokenizerFiles> TokenizerToJson(const TokenizerSource& source);

// Copies a folder's tokenizer files, or makes them from the GGUF's metadata, into `folder`, which exists.
absl::Status ExportTokenizer(const formats::ModelSource& model, const std::string& folder);

}  // namespace longhaul::data
