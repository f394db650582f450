// What the tests of the data library share: the golden tokenizers, a folder that goes away, and files of lines.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/env.h"
#include "worker/data/chat_template.h"
#include "worker/data/json.h"
#include "worker/data/tokenizer.h"
#include "worker/data/tokenizer_json.h"
#include "worker/formats/gguf.h"

namespace longhaul::data {

class TempDir {
 public:
  TempDir() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base == nullptr ? "/tmp" : base) + "/longhaul-data-XXXXXX";
    LH_CHECK(::mkdtemp(path_.data()) != nullptr, path_);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { LH_CHECK(RemoveTree(path_).ok(), path_); }
  // Writes a file and returns its path.
  std::string Write(const std::string& name, std::string_view bytes) const {
    const std::string file = JoinPath(path_, name);
    LH_CHECK(WriteFileAtomic(file, bytes).ok(), file);
    return file;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string GoldenPath(const std::string& name) { return LONGHAUL_SOURCE_DIR "/tests/golden/" + name; }

inline std::string GoldenText(const std::string& name) {
  absl::StatusOr<std::string> bytes = ReadFile(GoldenPath(name), 64 << 20);
  LH_CHECK(bytes.ok(), bytes.status().ToString());
  return *std::move(bytes);
}

inline Json GoldenJson(const std::string& name) { return Json::parse(GoldenText(name)); }

inline const Json& GoldenTokens() {
  static const Json golden = GoldenJson("data_tokens.json");
  return golden;
}

inline const Json& GoldenTemplates() {
  static const Json golden = GoldenJson("data_templates.json");
  return golden;
}

inline const Json& GoldenChat(const std::string& name) {
  for (const Json& chat : GoldenTemplates()["chats"]) {
    if (chat["name"] == name) return chat;
  }
  CheckFailed("golden template", __FILE__, __LINE__, name);
}

// "llama3", "qwen2" or "smollm", with `chat` as its template ("" = none).
inline TokenizerFiles GoldenTokenizerFiles(const std::string& style, const std::string& chat) {
  const bool llama3 = style == "llama3";
  TokenizerFiles files;
  files.name = style;
  files.tokenizer_json = GoldenText("data_" + style + "_tokenizer.json");
  files.tokenizer_config_json = llama3 ? R"({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})"
                                       : R"({"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|im_end|>"})";
  if (!chat.empty()) files.chat_template = GoldenChat(chat)["template"].get<std::string>();
  return files;
}

inline Tokenizer GoldenTokenizer(const std::string& style, const std::string& chat = "") {
  absl::StatusOr<Tokenizer> tokenizer = TokenizerFromJson(GoldenTokenizerFiles(style, chat));
  LH_CHECK(tokenizer.ok(), tokenizer.status().ToString());
  return *std::move(tokenizer);
}

// From tests/golden/data_smollm.gguf: pad = eos = <|im_end|>, SmolLM2's own template, which has a default system
// message.
inline Tokenizer GgufTokenizer() {
  const auto file = formats::GgufFile::Open(GoldenPath("data_smollm.gguf"));
  LH_CHECK(file.ok(), file.status().ToString());
  absl::StatusOr<Tokenizer> tokenizer = Tokenizer::FromGguf(*file);
  LH_CHECK(tokenizer.ok(), tokenizer.status().ToString());
  return *std::move(tokenizer);
}

inline ChatTemplate TemplateOf(const Tokenizer& tokenizer) {
  absl::StatusOr<ChatTemplate> chat = ChatTemplate::Create(tokenizer);
  LH_CHECK(chat.ok(), chat.status().ToString());
  return *std::move(chat);
}

inline Json Message(const std::string& role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

}  // namespace longhaul::data
