#include "worker/data/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "worker/data/unicode.h"

namespace longhaul::data {
namespace {

struct ByteMap {
  std::array<char32_t, 256> to_char{};
  std::array<int16_t, 0x144> to_byte{};

  ByteMap() {
    to_byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = itself ? static_cast<char32_t>(b) : next++;
      to_char[static_cast<size_t>(b)] = c;
      to_byte[c] = static_cast<int16_t>(b);
    }
  }
};

const ByteMap& Map() {
  static const ByteMap map;
  return map;
}

uint64_t Mix(uint64_t x) {
  x *= 0x9E3779B97F4A7C15u;
  return x ^ x >> 29;
}

uint64_t HashBytes(std::string_view bytes) {
  uint64_t h = bytes.size();
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t chunk;
    std::memcpy(&chunk, bytes.data() + i, 8);
    h = Mix(h ^ chunk);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, bytes.data() + i, bytes.size() - i);
  return Mix(Mix(h ^ tail) + 1);
}

constexpr size_t kCacheSlots = 1 << 15;
constexpr size_t kCachedWordBytes = 24;
constexpr size_t kCachedTokens = 6;

// One word and its tokens; a new word takes the slot of an older one.
struct CacheSlot {
  uint8_t word_bytes = 0;  // 0 = empty
  uint8_t tokens = 0;
  char word[kCachedWordBytes];
  BpeToken token[kCachedTokens];
};

struct Symbol {
  int32_t id;  // -1 = merged away
  int32_t prev;
  int32_t next;
  uint32_t begin;
  uint32_t end;
};

struct Candidate {
  uint64_t order;  // rank << 32 | position: lowest rank, then leftmost
  int32_t id;
  bool operator>(const Candidate& other) const { return order > other.order; }
};

// Up to this many symbols a heap is quickest. Past it the candidates no longer fit the cache, and lists by rank, each
// walked from left to right, are several times faster.
constexpr size_t kHeapSymbols = 2048;
// A longer word's working memory goes back when the word is done.
constexpr size_t kKeptSymbols = 1 << 20;

// Candidates of a long word, by rank. `lowest` is at most the lowest rank that has any.
struct RankLists {
  std::vector<std::vector<uint32_t>> positions;  // by rank; in order of position only once sorted
  size_t lowest = 0;

  void Push(uint32_t rank, uint32_t position) {
    positions[rank].push_back(position);
    lowest = std::min<size_t>(lowest, rank);
  }
};

}  // namespace

struct BpeScratch::State {
  std::vector<CacheSlot> cache = std::vector<CacheSlot>(kCacheSlots);
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  RankLists lists;
};

BpeScratch::BpeScratch() : state_(std::make_unique<State>()) {}
BpeScratch::~BpeScratch() = default;
BpeScratch::BpeScratch(BpeScratch&&) noexcept = default;
BpeScratch& BpeScratch::operator=(BpeScratch&&) noexcept = default;

char32_t ByteToChar(uint8_t byte) { return Map().to_char[byte]; }

bool MappedToBytes(std::string_view mapped, std::string* out) {
  out->clear();
  const ByteMap& map = Map();
  for (size_t i = 0; i < mapped.size();) {
    const CodePoint c = DecodeAt(mapped, i);
    if (c.value >= map.to_byte.size() || map.to_byte[c.value] < 0) return false;
    out->push_back(static_cast<char>(map.to_byte[c.value]));
    i += static_cast<size_t>(c.bytes);
  }
  return true;
}

absl::StatusOr<BpeModel> BpeModel::Create(const std::vector<std::string_view>& tokens,
                                          const std::vector<std::pair<std::string_view, std::string_view>>& merges,
                                          const Options& options) {
  BpeModel model;
  model.options_ = options;
  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(tokens.size());
  model.offsets_.push_back(0);
  std::string bytes;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) ids.emplace(tokens[id], static_cast<int32_t>(id));
    model.bytes_ += MappedToBytes(tokens[id], &bytes) ? std::string_view(bytes) : tokens[id];
    model.offsets_.push_back(model.bytes_.size());
  }
  for (int b = 0; b < 256; ++b) {
    std::string character;
    AppendUtf8(ByteToChar(static_cast<uint8_t>(b)), &character);
    auto it = ids.find(character);
    model.byte_ids_[static_cast<size_t>(b)] = it == ids.end() ? -1 : it->second;
  }
  uint64_t slots = 16;
  while (slots < merges.size() * 2) slots *= 2;
  model.slots_.resize(slots);
  model.slot_mask_ = slots - 1;
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    joined.assign(left).append(right);
    const auto left_id = ids.find(left), right_id = ids.find(right), joined_id = ids.find(joined);
    if (left_id == ids.end() || right_id == ids.end() || joined_id == ids.end()) {
      return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL",
                       "tokenizer: merge " + std::to_string(rank) + " (" + std::string(left.substr(0, 64)) + " + " +
                           std::string(right.substr(0, 64)) + ") has a part or a result that is not in the vocabulary");
    }
    model.rank_ids_.push_back(joined_id->second);
    model.InsertMerge(left_id->second, right_id->second, static_cast<uint32_t>(rank), joined_id->second);
  }
  if (options.ignore_merges) {
    auto storage = std::make_shared<const std::string>(model.bytes_);
    model.whole_.reserve(tokens.size());
    for (size_t id = 0; id < tokens.size(); ++id) {
      const uint64_t begin = model.offsets_[id], end = model.offsets_[id + 1];
      // A token that is not made of mapped bytes can never equal a mapped word.
      if (begin == end || !MappedToBytes(tokens[id], &bytes)) continue;
      model.whole_.emplace(std::string_view(*storage).substr(begin, end - begin), static_cast<int32_t>(id));
    }
    model.whole_bytes_ = std::move(storage);
  }
  return model;
}

const BpeModel::MergeSlot* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  for (uint64_t i = Mix(pair) & slot_mask_;; i = (i + 1) & slot_mask_) {
    if (slots_[i].pair == pair) return &slots_[i];
    if (slots_[i].pair == UINT64_MAX) return nullptr;
  }
}

void BpeModel::InsertMerge(int32_t left, int32_t right, uint32_t rank, int32_t id) {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  uint64_t i = Mix(pair) & slot_mask_;
  while (slots_[i].pair != UINT64_MAX && slots_[i].pair != pair) i = (i + 1) & slot_mask_;
  slots_[i] = {pair, rank, id};
}

const BpeModel::MergeSlot* BpeModel::PairAt(int32_t left, const BpeScratch::State& state) const {
  const Symbol& symbol = state.symbols[static_cast<size_t>(left)];
  if (symbol.id < 0 || symbol.next < 0) return nullptr;
  return FindMerge(symbol.id, state.symbols[static_cast<size_t>(symbol.next)].id);
}

void BpeModel::Join(int32_t at, int32_t id, BpeScratch::State* state) const {
  Symbol& left = state->symbols[static_cast<size_t>(at)];
  Symbol& right = state->symbols[static_cast<size_t>(left.next)];
  left.id = id;
  left.end = right.end;
  left.next = right.next;
  right.id = -1;
  if (left.next >= 0) state->symbols[static_cast<size_t>(left.next)].prev = at;
}

void BpeModel::MergeByHeap(BpeScratch::State* state) const {
  std::vector<Candidate>& heap = state->heap;
  heap.clear();
  auto add = [&](int32_t at) {
    const MergeSlot* merge = PairAt(at, *state);
    if (merge == nullptr) return false;
    heap.push_back({static_cast<uint64_t>(merge->rank) << 32 | static_cast<uint32_t>(at), merge->id});
    return true;
  };
  for (int32_t i = 0; i < static_cast<int32_t>(state->symbols.size()); ++i) add(i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const Candidate top = heap.back();
    heap.pop_back();
    const auto at = static_cast<int32_t>(top.order & UINT32_MAX);
    // An entry may be older than its symbols: it counts only while the pair still makes the same token.
    const MergeSlot* merge = PairAt(at, *state);
    if (merge == nullptr || merge->id != top.id) continue;
    Join(at, top.id, state);
    const int32_t prev = state->symbols[static_cast<size_t>(at)].prev;
    if (prev >= 0 && add(prev)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    if (add(at)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
  }
}

void BpeModel::MergeByRankLists(BpeScratch::State* state) const {
  RankLists& lists = state->lists;
  lists.positions.resize(rank_ids_.size());
  lists.lowest = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(state->symbols.size()); ++i) {
    if (const MergeSlot* merge = PairAt(i, *state)) lists.Push(merge->rank, static_cast<uint32_t>(i));
  }
  while (true) {
    while (lists.lowest < lists.positions.size() && lists.positions[lists.lowest].empty()) ++lists.lowest;
    if (lists.lowest == lists.positions.size()) return;
    const size_t rank = lists.lowest;
    const int32_t id = rank_ids_[rank];
    std::vector<uint32_t> positions = std::move(lists.positions[rank]);
    lists.positions[rank].clear();
    std::sort(positions.begin(), positions.end());
    lists.lowest = rank + 1;
    for (size_t p = 0; p < positions.size(); ++p) {
      const auto at = static_cast<int32_t>(positions[p]);
      const MergeSlot* merge = PairAt(at, *state);
      if (merge == nullptr || merge->id != id) continue;
      Join(at, id, state);
      for (int32_t first : {state->symbols[static_cast<size_t>(at)].prev, at}) {
        const MergeSlot* next = first < 0 ? nullptr : PairAt(first, *state);
        if (next != nullptr) lists.Push(next->rank, static_cast<uint32_t>(first));
      }
      if (lists.lowest <= rank) {
        // A pair of this rank or a lower one has come up: it goes before what is left of this list.
        auto& back = lists.positions[rank];
        back.insert(back.end(), positions.begin() + static_cast<std::ptrdiff_t>(p) + 1, positions.end());
        break;
      }
    }
  }
}

void BpeModel::MergeWord(std::string_view word, BpeScratch::State* state, std::vector<BpeToken>* out) const {
  std::vector<Symbol>& symbols = state->symbols;
  symbols.clear();
  for (size_t i = 0; i < word.size(); ++i) {
    int32_t id = byte_ids_[static_cast<uint8_t>(word[i])];
    if (id < 0) id = options_.unk_id;
    if (id < 0) continue;
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1, static_cast<uint32_t>(i), static_cast<uint32_t>(i + 1)});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  if (symbols.size() <= kHeapSymbols) {
    MergeByHeap(state);
  } else {
    MergeByRankLists(state);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    out->push_back({symbol.id, symbol.begin, symbol.end});
  }
  if (symbols.capacity() > kKeptSymbols) std::vector<Symbol>().swap(symbols);
}

void BpeModel::EncodeWord(std::string_view word, BpeScratch* scratch, std::vector<BpeToken>* out) const {
  if (word.empty()) return;
  BpeScratch::State* state = scratch->state_.get();
  if (word.size() > kCachedWordBytes) {
    if (options_.ignore_merges) {
      if (auto it = whole_.find(word); it != whole_.end()) {
        out->push_back({it->second, 0, static_cast<uint32_t>(word.size())});
        return;
      }
    }
    MergeWord(word, state, out);
    return;
  }
  CacheSlot& slot = state->cache[HashBytes(word) & (kCacheSlots - 1)];
  if (slot.word_bytes == word.size() && std::memcmp(slot.word, word.data(), word.size()) == 0) {
    out->insert(out->end(), slot.token, slot.token + slot.tokens);
    return;
  }
  const size_t before = out->size();
  auto whole = options_.ignore_merges ? whole_.find(word) : whole_.end();
  if (whole != whole_.end()) {
    out->push_back({whole->second, 0, static_cast<uint32_t>(word.size())});
  } else {
    MergeWord(word, state, out);
  }
  if (out->size() - before > kCachedTokens) return;
  slot.word_bytes = static_cast<uint8_t>(word.size());
  slot.tokens = static_cast<uint8_t>(out->size() - before);
  std::memcpy(slot.word, word.data(), word.size());
  std::copy(out->begin() + static_cast<std::ptrdiff_t>(before), out->end(), slot.token);
}

}  // namespace longhaul::data
