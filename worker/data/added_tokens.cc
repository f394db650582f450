#include "worker/data/added_tokens.h"

#include <algorithm>

#include "base/error.h"
#include "base/limits.h"
#include "worker/data/unicode.h"

namespace longhaul::data {
namespace {

size_t SpaceBefore(std::string_view text, size_t offset) {
  while (offset > 0) {
    const CodePoint c = DecodeBefore(text, offset);
    if (ClassOf(c.value) != CharClass::kSpace) break;
    offset -= static_cast<size_t>(c.bytes);
  }
  return offset;
}

size_t SpaceAfter(std::string_view text, size_t offset) {
  while (offset < text.size()) {
    const CodePoint c = DecodeAt(text, offset);
    if (ClassOf(c.value) != CharClass::kSpace) break;
    offset += static_cast<size_t>(c.bytes);
  }
  return offset;
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  const bool word_before = begin > 0 && IsWordChar(DecodeBefore(text, begin).value);
  const bool word_after = end < text.size() && IsWordChar(DecodeAt(text, end).value);
  return !word_before && !word_after;
}

}  // namespace

absl::StatusOr<AddedTokenMatcher> AddedTokenMatcher::Create(std::vector<AddedToken> tokens) {
  if (static_cast<int64_t>(tokens.size()) > limits::kMaxAddedTokens) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL",
                     "tokenizer: " + std::to_string(tokens.size()) + " added tokens; the limit is " +
                         std::to_string(limits::kMaxAddedTokens));
  }
  AddedTokenMatcher matcher;
  matcher.nodes_.emplace_back();
  for (size_t t = 0; t < tokens.size(); ++t) {
    const std::string& content = tokens[t].content;
    if (content.empty() || static_cast<int64_t>(content.size()) > limits::kMaxAddedTokenBytes) {
      return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL",
                       "tokenizer: added token " + std::to_string(tokens[t].id) + " has " +
                           std::to_string(content.size()) + " bytes; must have 1 to " +
                           std::to_string(limits::kMaxAddedTokenBytes));
    }
    matcher.starts_[static_cast<uint8_t>(content[0])] = true;
    int32_t node = 0;
    for (char c : content) {
      int32_t next = matcher.Child(node, static_cast<uint8_t>(c));
      if (next < 0) {
        next = static_cast<int32_t>(matcher.nodes_.size());
        matcher.nodes_.emplace_back();
        auto& children = matcher.nodes_[static_cast<size_t>(node)].children;
        const std::pair<uint8_t, int32_t> child{static_cast<uint8_t>(c), next};
        children.insert(std::lower_bound(children.begin(), children.end(), child), child);
      }
      node = next;
    }
    matcher.nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(t);
  }
  matcher.tokens_ = std::move(tokens);
  return matcher;
}

int32_t AddedTokenMatcher::Child(int32_t node, uint8_t byte) const {
  const auto& children = nodes_[static_cast<size_t>(node)].children;
  auto it = std::lower_bound(children.begin(), children.end(), std::pair<uint8_t, int32_t>{byte, -1});
  return it != children.end() && it->first == byte ? it->second : -1;
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t begin) const {
  int32_t node = 0, best = -1;
  for (size_t i = begin; i < text.size(); ++i) {
    node = Child(node, static_cast<uint8_t>(text[i]));
    if (node < 0) break;
    if (nodes_[static_cast<size_t>(node)].token >= 0) best = nodes_[static_cast<size_t>(node)].token;
  }
  return best;
}

void AddedTokenMatcher::Split(std::string_view text, bool parse_special, std::vector<Segment>* out) const {
  size_t covered = 0;
  for (size_t i = 0; i < text.size();) {
    if (!starts_[static_cast<uint8_t>(text[i])]) {
      ++i;
      continue;
    }
    const int32_t found = LongestAt(text, i);
    if (found < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    size_t begin = i, end = i + token.content.size();
    i = end;  // a match that is refused is stepped over whole, as the reference does
    if (token.special && !parse_special) continue;
    if (token.single_word && !StandsAlone(text, begin, end)) continue;
    if (token.lstrip) begin = SpaceBefore(text, begin);
    begin = std::max(begin, covered);
    if (token.rstrip) end = SpaceAfter(text, end);
    if (covered < begin) out->push_back({covered, begin, -1});
    out->push_back({begin, std::max(begin, end), token.id});
    covered = std::max(begin, end);
  }
  if (covered < text.size()) out->push_back({covered, text.size(), -1});
}

}  // namespace longhaul::data
