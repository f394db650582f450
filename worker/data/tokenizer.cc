#include "worker/data/tokenizer.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/normalizer.h"
#include "worker/data/unicode.h"

namespace longhaul::data {
namespace {

// Length-prefixed fields, so that no two sources serialise alike.
class Digester {
 public:
  void Number(int64_t value) { hash_.Update(std::to_string(value) + ";"); }
  void Text(std::string_view text) {
    Number(static_cast<int64_t>(text.size()));
    hash_.Update(text);
  }
  std::string Hex() { return hash_.HexDigest(); }

 private:
  Sha256 hash_;
};

std::string DigestOf(const TokenizerSource& source) {
  Digester d;
  d.Text("longhaul tokenizer 1");
  d.Number(static_cast<int64_t>(source.tokens.size()));
  for (std::string_view token : source.tokens) d.Text(token);
  d.Number(static_cast<int64_t>(source.merges.size()));
  for (const auto& [left, right] : source.merges) {
    d.Text(left);
    d.Text(right);
  }
  d.Number(static_cast<int64_t>(source.added.size()));
  for (const AddedToken& token : source.added) {
    d.Text(token.content);
    for (int64_t v : {int64_t{token.id}, int64_t{token.special}, int64_t{token.normalized}, int64_t{token.lstrip},
                      int64_t{token.rstrip}, int64_t{token.single_word}}) {
      d.Number(v);
    }
  }
  for (PreTokenizerStep step : source.steps) d.Number(static_cast<int64_t>(step));
  for (int64_t v : {int64_t{source.nfc}, int64_t{source.ignore_merges}, int64_t{source.model_unk_id}}) d.Number(v);
  for (const auto* ids : {&source.prefix_ids, &source.suffix_ids}) {
    d.Number(static_cast<int64_t>(ids->size()));
    for (int32_t id : *ids) d.Number(id);
  }
  for (int32_t id : {source.bos_id, source.eos_id, source.pad_id, source.unk_id}) d.Number(id);
  d.Text(source.chat_template);
  d.Text(source.tool_chat_template);
  return d.Hex();
}

absl::Status CheckSource(const TokenizerSource& source, int32_t vocab_size) {
  if (vocab_size <= 0 || vocab_size > limits::kMaxVocabSize) {
    return InvalidTokenizer(source, "vocabulary of " + std::to_string(vocab_size) + " ids; must be 1 to " +
                                        std::to_string(limits::kMaxVocabSize));
  }
  for (size_t id = 0; id < source.tokens.size(); ++id) {
    if (!IsValidUtf8(source.tokens[id]))
      return InvalidTokenizer(source, "token " + std::to_string(id) + " is not UTF-8");
  }
  for (const AddedToken& token : source.added) {
    if (!IsValidUtf8(token.content)) {
      return InvalidTokenizer(source, "added token " + std::to_string(token.id) + " is not UTF-8");
    }
  }
  auto known = [&](int32_t id) {
    if (id < 0 || id >= vocab_size) return false;
    if (static_cast<size_t>(id) < source.tokens.size() && !source.tokens[static_cast<size_t>(id)].empty()) return true;
    return std::any_of(source.added.begin(), source.added.end(), [&](const AddedToken& t) { return t.id == id; });
  };
  const std::pair<const char*, int32_t> named[] = {
      {"BOS", source.bos_id}, {"EOS", source.eos_id},       {"padding", source.pad_id},
      {"UNK", source.unk_id}, {"UNK", source.model_unk_id},
  };
  for (const auto& [what, id] : named) {
    if (id != -1 && !known(id)) {
      return InvalidTokenizer(source, std::string(what) + " id " + std::to_string(id) + " is not in the vocabulary");
    }
  }
  for (const auto* ids : {&source.prefix_ids, &source.suffix_ids}) {
    for (int32_t id : *ids) {
      if (!known(id))
        return InvalidTokenizer(source, "post-processor id " + std::to_string(id) + " is not in the vocabulary");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status InvalidTokenizer(const TokenizerSource& source, const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL", source.name + ": tokenizer: " + what);
}

// Where tokens of plain text go. Offsets in words are added to `base`; `map` leads from normalised text to the source.
struct Tokenizer::PlainSink {
  BpeScratch* scratch = nullptr;
  Encoding* out = nullptr;
  bool with_spans = false;
  size_t base = 0;
  const NfcText* map = nullptr;
  size_t map_base = 0;  // where the words' text begins in the normalised text
  std::vector<size_t> ends, ends_scratch;
  std::vector<BpeToken> tokens;
};

absl::StatusOr<Tokenizer> Tokenizer::Create(const TokenizerSource& source) {
  int64_t vocab_size = static_cast<int64_t>(source.tokens.size());
  for (const AddedToken& token : source.added) {
    if (token.id < 0 || token.id >= limits::kMaxVocabSize) {
      return InvalidTokenizer(source, "added token id " + std::to_string(token.id) + "; must be below " +
                                          std::to_string(limits::kMaxVocabSize));
    }
    vocab_size = std::max<int64_t>(vocab_size, token.id + 1);
  }
  Tokenizer t;
  t.vocab_size_ = static_cast<int32_t>(std::min<int64_t>(vocab_size, INT32_MAX));
  LH_RETURN_IF_ERROR(CheckSource(source, t.vocab_size_));
  auto bpe = BpeModel::Create(source.tokens, source.merges, {source.ignore_merges, source.model_unk_id});
  if (!bpe.ok()) return Annotate(bpe.status(), source.name);
  t.bpe_ = *std::move(bpe);

  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : source.added) (token.normalized ? normalized : raw).push_back(token);
  if (source.nfc) {
    for (AddedToken& token : normalized) {
      NfcText nfc;
      LH_RETURN_IF_ERROR(NormalizeNfc(token.content, &nfc));
      token.content = std::string(nfc.text);
    }
  }
  LH_ASSIGN_OR_RETURN(t.raw_matcher_, AddedTokenMatcher::Create(std::move(raw)));
  LH_ASSIGN_OR_RETURN(t.normalized_matcher_, AddedTokenMatcher::Create(std::move(normalized)));

  t.steps_ = source.steps;
  t.nfc_ = source.nfc;
  t.prefix_ids_ = source.prefix_ids;
  t.suffix_ids_ = source.suffix_ids;
  t.bos_id_ = source.bos_id;
  t.eos_id_ = source.eos_id;
  t.pad_id_ = source.pad_id;
  t.unk_id_ = source.unk_id;
  t.chat_template_ = source.chat_template;
  t.tool_chat_template_ = source.tool_chat_template;
  t.texts_.assign(source.tokens.begin(), source.tokens.end());
  t.ids_.reserve(t.texts_.size() + source.added.size());
  for (const AddedToken& token : source.added) {
    t.ids_.emplace(token.content, token.id);
    t.added_.emplace(token.id, token);
    std::string bytes;
    if (!MappedToBytes(token.content, &bytes)) bytes = token.content;
    t.added_bytes_.emplace(token.id, std::move(bytes));
  }
  for (size_t id = 0; id < t.texts_.size(); ++id) {
    if (!t.texts_[id].empty()) t.ids_.emplace(t.texts_[id], static_cast<int32_t>(id));
  }
  t.digest_ = DigestOf(source);
  return t;
}

void Tokenizer::EncodeWords(std::string_view text, PlainSink* sink) const {
  PreTokenize(steps_, text, &sink->ends, &sink->ends_scratch);
  size_t begin = 0;
  for (size_t end : sink->ends) {
    sink->tokens.clear();
    bpe_.EncodeWord(text.substr(begin, end - begin), sink->scratch, &sink->tokens);
    for (const BpeToken& token : sink->tokens) {
      sink->out->ids.push_back(token.id);
      if (!sink->with_spans) continue;
      int64_t first = static_cast<int64_t>(sink->map_base + begin + token.begin);
      int64_t last = static_cast<int64_t>(sink->map_base + begin + token.end);
      if (sink->map != nullptr) {
        first = sink->map->SourceBegin(first);
        last = sink->map->SourceEnd(last);
      }
      const auto base = static_cast<int64_t>(sink->base);
      sink->out->spans.push_back({base + first, base + last});
    }
    begin = end;
  }
}

absl::Status Tokenizer::EncodePlain(std::string_view text, size_t base, bool parse_special, PlainSink* sink) const {
  sink->base = base;
  sink->map_base = 0;
  sink->map = nullptr;
  std::optional<NfcText> nfc;
  if (nfc_) {
    nfc.emplace();
    LH_RETURN_IF_ERROR(NormalizeNfc(text, &*nfc));
    text = nfc->text;
    sink->map = &*nfc;
  }
  if (normalized_matcher_.empty()) {
    EncodeWords(text, sink);
  } else {
    std::vector<AddedTokenMatcher::Segment> segments;
    normalized_matcher_.Split(text, parse_special, &segments);
    for (const auto& segment : segments) {
      if (segment.id < 0) {
        sink->map_base = segment.begin;
        EncodeWords(text.substr(segment.begin, segment.end - segment.begin), sink);
        continue;
      }
      sink->out->ids.push_back(segment.id);
      if (!sink->with_spans) continue;
      auto first = static_cast<int64_t>(segment.begin), last = static_cast<int64_t>(segment.end);
      if (sink->map != nullptr) {
        first = sink->map->SourceBegin(first);
        last = sink->map->SourceEnd(last);
      }
      sink->out->spans.push_back({static_cast<int64_t>(base) + first, static_cast<int64_t>(base) + last});
    }
  }
  sink->map = nullptr;
  return absl::OkStatus();
}

absl::Status Tokenizer::EncodeInto(std::string_view text, const EncodeOptions& options, BpeScratch* scratch,
                                   Encoding* out, bool with_spans) const {
  if (text.size() > INT32_MAX) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TEXT_TOO_LONG",
                     "the text has " + std::to_string(text.size()) + " bytes; at most 2147483647 can be encoded");
  }
  if (const size_t valid = ValidUtf8Prefix(text); valid != text.size()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "NOT_UTF8",
                     "the text is not UTF-8 at byte " + std::to_string(valid));
  }
  std::optional<BpeScratch> own;
  if (scratch == nullptr) scratch = &own.emplace();
  PlainSink sink;
  sink.scratch = scratch;
  sink.out = out;
  sink.with_spans = with_spans;
  if (options.add_special) {
    out->ids = prefix_ids_;
    if (with_spans) out->spans.assign(prefix_ids_.size(), {0, 0});
  }
  std::vector<AddedTokenMatcher::Segment> segments;
  raw_matcher_.Split(text, options.parse_special, &segments);
  for (const auto& segment : segments) {
    if (segment.id >= 0) {
      out->ids.push_back(segment.id);
      if (with_spans) out->spans.push_back({static_cast<int64_t>(segment.begin), static_cast<int64_t>(segment.end)});
      continue;
    }
    LH_RETURN_IF_ERROR(EncodePlain(text.substr(segment.begin, segment.end - segment.begin), segment.begin,
                                   options.parse_special, &sink));
  }
  if (options.add_special) {
    const auto end = static_cast<int64_t>(text.size());
    out->ids.insert(out->ids.end(), suffix_ids_.begin(), suffix_ids_.end());
    if (with_spans) out->spans.insert(out->spans.end(), suffix_ids_.size(), {end, end});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, const EncodeOptions& options,
                                                       BpeScratch* scratch) const {
  Encoding encoding;
  LH_RETURN_IF_ERROR(EncodeInto(text, options, scratch, &encoding, false));
  return std::move(encoding.ids);
}

absl::StatusOr<Encoding> Tokenizer::EncodeWithSpans(std::string_view text, const EncodeOptions& options,
                                                    BpeScratch* scratch) const {
  Encoding encoding;
  LH_RETURN_IF_ERROR(EncodeInto(text, options, scratch, &encoding, true));
  return encoding;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (auto it = added_bytes_.find(id); it != added_bytes_.end()) return it->second;
  if (id < 0 || id >= bpe_.size()) return {};
  return bpe_.TokenBytes(id);
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (!skip_special || !IsSpecial(id)) bytes += TokenBytes(id);
  }
  return LossyUtf8(bytes);
}

int32_t Tokenizer::TokenToId(std::string_view token) const {
  auto it = ids_.find(std::string(token));
  return it == ids_.end() ? -1 : it->second;
}

std::string Tokenizer::TokenText(int32_t id) const {
  if (auto it = added_.find(id); it != added_.end()) return it->second.content;
  if (id < 0 || static_cast<size_t>(id) >= texts_.size()) return "";
  return texts_[static_cast<size_t>(id)];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  auto it = added_.find(id);
  return it != added_.end() && it->second.special;
}

std::vector<std::pair<std::string, std::string>> Tokenizer::SpecialTokenNames() const {
  std::vector<std::pair<std::string, std::string>> names;
  const std::pair<const char*, int32_t> all[] = {
      {"bos_token", bos_id_}, {"eos_token", eos_id_}, {"pad_token", pad_id_}, {"unk_token", unk_id_}};
  for (const auto& [name, id] : all) {
    if (id >= 0) names.emplace_back(name, TokenText(id));
  }
  return names;
}

std::string StreamDecoder::Append(int32_t id) {
  if (skip_special_ && tokenizer_->IsSpecial(id)) return "";
  pending_ += tokenizer_->TokenBytes(id);
  // A character that is still open at the end has at most three bytes; anything longer is broken, not open.
  size_t keep = 0;
  for (size_t back = 1; back <= std::min<size_t>(3, pending_.size()); ++back) {
    const auto byte = static_cast<uint8_t>(pending_[pending_.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t needs = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    if (needs > back && byte <= 0xF4) keep = back;
    break;
  }
  std::string done = LossyUtf8(std::string_view(pending_).substr(0, pending_.size() - keep));
  pending_.erase(0, pending_.size() - keep);
  return done;
}

std::string StreamDecoder::Flush() {
  std::string rest = LossyUtf8(pending_);
  pending_.clear();
  return rest;
}

}  // namespace longhaul::data
