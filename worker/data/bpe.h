// Byte-level BPE: joins the pair of lowest rank, leftmost first, until no pair is left. O(n log n) in the word's
// length. Source: the semantics of Hugging Face tokenizers' Word::merge_all (FORMATS.md section 5).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::data {

// The byte map of byte-level vocabularies: 0x21-7E, A1-AC, AE-FF stand for themselves, the rest, in order, for U+0100
// up.
char32_t ByteToChar(uint8_t byte);
// "Ġthe" -> " the". False where a character is not in the map; *out is then unspecified.
bool MappedToBytes(std::string_view mapped, std::string* out);

// Working memory of an encoder, and a bounded cache of words seen. One a thread; REQUIRES use with one BpeModel only.
class BpeScratch {
 public:
  BpeScratch();
  ~BpeScratch();
  BpeScratch(BpeScratch&&) noexcept;
  BpeScratch& operator=(BpeScratch&&) noexcept;

 private:
  friend class BpeModel;
  struct State;
  std::unique_ptr<State> state_;
};

// A token of a word: bytes [begin, end) of it.
struct BpeToken {
  int32_t id = -1;
  uint32_t begin = 0;
  uint32_t end = 0;
};

// Immutable after Create; thread-safe.
class BpeModel {
 public:
  struct Options {
    bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
    int32_t unk_id = -1;         // stands for a byte without a token; -1: such a byte is dropped, as the reference does
  };

  BpeModel() = default;
  // `tokens`: id -> mapped text ("" = no such id); `merges`: pairs in rank order, of a repeated pair the last counts.
  // The views are read during the call only. INVALID_ARGUMENT names the merge whose part or result is no token.
  static absl::StatusOr<BpeModel> Create(const std::vector<std::string_view>& tokens,
                                         const std::vector<std::pair<std::string_view, std::string_view>>& merges,
                                         const Options& options);

  // Appends the tokens of one word. REQUIRES: word.size() < 2^31; scratch used with this model only.
  void EncodeWord(std::string_view word, BpeScratch* scratch, std::vector<BpeToken>* out) const;

  // The bytes that a token stands for; "" for an id without a token.
  std::string_view TokenBytes(int32_t id) const {
    const auto at = static_cast<size_t>(id);
    return {bytes_.data() + offsets_[at], offsets_[at + 1] - offsets_[at]};
  }
  int32_t size() const { return static_cast<int32_t>(offsets_.empty() ? 0 : offsets_.size() - 1); }

 private:
  struct MergeSlot {
    uint64_t pair = UINT64_MAX;
    uint32_t rank = 0;
    int32_t id = -1;
  };
  const MergeSlot* FindMerge(int32_t left, int32_t right) const;
  void InsertMerge(int32_t left, int32_t right, uint32_t rank, int32_t id);
  void MergeWord(std::string_view word, BpeScratch::State* state, std::vector<BpeToken>* out) const;
  // The merge of the symbol at `left` with its right neighbour; null where there is none.
  const MergeSlot* PairAt(int32_t left, const BpeScratch::State& state) const;
  void Join(int32_t at, int32_t id, BpeScratch::State* state) const;
  void MergeByHeap(BpeScratch::State* state) const;
  void MergeByRankLists(BpeScratch::State* state) const;

  Options options_;
  std::array<int32_t, 256> byte_ids_{};
  std::string bytes_;
  std::vector<uint64_t> offsets_;
  std::unordered_map<std::string_view, int32_t> whole_;  // bytes -> id, only with ignore_merges
  std::shared_ptr<const std::string> whole_bytes_;       // what whole_ views
  std::vector<MergeSlot> slots_;
  uint64_t slot_mask_ = 0;
  std::vector<int32_t> rank_ids_;  // rank -> the token that the merge makes
};

}  // namespace longhaul::data
