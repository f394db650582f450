// A whole model in a folder, small enough to train in milliseconds: two layers of 32, a byte-level tokenizer of 256
// bytes and two special tokens, a ChatML template. Its weights are random and always the same.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/env.h"
#include "base/random.h"
#include "model/model_shape.h"
#include "nlohmann/json.hpp"
#include "worker/formats/safetensors.h"
#include "worker/formats/tensor_names.h"

namespace longhaul {

inline ModelShape TinyModelShape() {
  ModelShape shape;
  shape.family = "llama";
  shape.layers = 2;
  shape.hidden = 32;
  shape.intermediate = 64;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 8;
  shape.vocab = 260;
  shape.max_position_embeddings = 256;
  shape.tied_embeddings = true;
  return shape;
}

// The character that stands for a byte in a byte-level vocabulary (FORMATS: GPT-2's byte map), in UTF-8.
inline std::string TinyByteToken(int byte) {
  const auto is_itself = [](int b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
  };
  int code = byte;
  if (!is_itself(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += is_itself(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

inline void WriteTinyTokenizer(const std::string& folder) {
  nlohmann::json vocab;
  vocab["<|im_start|>"] = 0;
  vocab["<|im_end|>"] = 1;
  vocab["<|endoftext|>"] = 2;
  for (int byte = 0; byte < 256; ++byte) vocab[TinyByteToken(byte)] = 3 + byte;
  nlohmann::json added = nlohmann::json::array();
  for (const auto& [id, text] : {std::pair{0, "<|im_start|>"}, {1, "<|im_end|>"}, {2, "<|endoftext|>"}}) {
    added.push_back({{"id", id}, {"content", text}, {"special", true}, {"normalized", false}});
  }
  nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}},
  };
  nlohmann::json config = {
      {"bos_token", "<|im_start|>"},
      {"eos_token", "<|im_end|>"},
      {"pad_token", "<|endoftext|>"},
      {"chat_template",
       "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
       "'\n'}}"
       "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"},
  };
  LH_CHECK(WriteFileAtomic(folder + "/tokenizer.json", tokenizer.dump()).ok());
  LH_CHECK(WriteFileAtomic(folder + "/tokenizer_config.json", config.dump()).ok());
}

inline void WriteTinyWeights(const std::string& folder, const ModelShape& shape, uint64_t seed) {
  formats::SafetensorsWriter writer;
  std::vector<std::vector<float>> data;
  const auto expected = formats::ExpectedTensors(shape);
  data.reserve(expected.size());
  uint64_t counter = 0;
  for (const auto& tensor : expected) {
    std::vector<float>& values = data.emplace_back(static_cast<size_t>(tensor.rows * tensor.cols), 1.0f);
    // Norms stay at one; the rest is uniform with about the variance that keeps activations in range.
    if (!tensor.is_vector) {
      for (float& value : values) value = static_cast<float>((CounterUniform(seed, counter++) - 0.5) * 0.4);
    }
    std::vector<int64_t> dims = {tensor.rows, tensor.cols};
    if (tensor.is_vector) dims = {tensor.cols};
    writer.Add({tensor.hf_name, formats::StorageType::kF32, dims, values.data()});
  }
  LH_CHECK(writer.WriteFile(folder + "/model.safetensors").ok());
}

inline void WriteTinyModel(const std::string& folder, uint64_t seed = 1) {
  LH_CHECK(CreateDirs(folder).ok());
  const ModelShape shape = TinyModelShape();
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"model_type", "llama"},
                                 {"hidden_size", shape.hidden},
                                 {"intermediate_size", shape.intermediate},
                                 {"num_hidden_layers", shape.layers},
                                 {"num_attention_heads", shape.heads},
                                 {"num_key_value_heads", shape.kv_heads},
                                 {"head_dim", shape.head_dim},
                                 {"rms_norm_eps", shape.rms_norm_eps},
                                 {"rope_theta", shape.rope.theta},
                                 {"max_position_embeddings", shape.max_position_embeddings},
                                 {"vocab_size", shape.vocab},
                                 {"hidden_act", "silu"},
                                 {"tie_word_embeddings", shape.tied_embeddings},
                                 {"torch_dtype", "float32"}};
  LH_CHECK(WriteFileAtomic(folder + "/config.json", config.dump()).ok());
  WriteTinyTokenizer(folder);
  WriteTinyWeights(folder, shape, seed);
}

}  // namespace longhaul
