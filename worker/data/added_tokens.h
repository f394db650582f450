// Finds added tokens (<|im_start|> and the like) in raw text: leftmost, then longest.
// Immutable after Create; thread-safe.
// Source: the semantics of Hugging Face tokenizers' AddedVocabulary (FORMATS.md section 5).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::data {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;      // skipped by Decode(skip_special), matched only where specials are parsed
  bool normalized = false;   // matched after normalisation, not before
  bool lstrip = false;       // swallows the whitespace before it
  bool rstrip = false;       // and after it
  bool single_word = false;  // only between characters that are not \w
};

class AddedTokenMatcher {
 public:
  // A stretch of the text: an added token (id >= 0) or plain text (id -1).
  struct Segment {
    size_t begin = 0;
    size_t end = 0;
    int32_t id = -1;
  };

  AddedTokenMatcher() = default;
  // INVALID_ARGUMENT where a content is empty or longer than limits::kMaxAddedTokenBytes, or they are too many.
  static absl::StatusOr<AddedTokenMatcher> Create(std::vector<AddedToken> tokens);

  // Appends the segments of `text` in order; they cover it, except whitespace swallowed twice.
  // Special tokens are plain text unless parse_special. REQUIRES: valid UTF-8.
  void Split(std::string_view text, bool parse_special, std::vector<Segment>* out) const;
  bool empty() const { return tokens_.empty(); }

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> children;  // sorted by byte
    int32_t token = -1;                                 // index into tokens_
  };
  int32_t Child(int32_t node, uint8_t byte) const;
  int32_t LongestAt(std::string_view text, size_t begin) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};
};

}  // namespace longhaul::data
