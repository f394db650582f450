#include "worker/data/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/edits.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <new>

#include "base/error.h"

namespace longhaul::data {
namespace {

// Every code point below U+0300 is in NFC and composes with nothing before it.
bool PlainlyNfc(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
}

// The last run that begins at or before `offset`.
size_t RunAt(const std::vector<NfcText::Run>& runs, int64_t offset) {
  auto after = std::upper_bound(runs.begin(), runs.end(), offset,
                                [](int64_t value, const NfcText::Run& run) { return value < run.begin; });
  return static_cast<size_t>(after - runs.begin()) - 1;
}

// NFC as Hugging Face's tokenizers have it, whose tables end with Unicode 9: a later combining mark stays where it is.
// Null where ICU has no data.
const icu::Normalizer2* NfcOfUnicode9(UErrorCode* code) {
  static UErrorCode made = U_ZERO_ERROR;
  static const icu::Normalizer2* const filtered = []() -> const icu::Normalizer2* {
    const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(made);
    static icu::UnicodeSet known(icu::UnicodeString(u"[:age=9.0:]"), made);
    known.freeze();
    if (U_FAILURE(made)) return nullptr;
    static const icu::FilteredNormalizer2 normalizer(*nfc, known);
    return &normalizer;
  }();
  *code = made;
  return filtered;
}

// An error of the text would be called a line's fault, and the user's.
void ThrowIfOutOfMemory(UErrorCode code) {
  if (code == U_MEMORY_ALLOCATION_ERROR) throw std::bad_alloc();
}

}  // namespace

int64_t NfcText::SourceBegin(int64_t offset) const {
  if (runs.empty()) return offset;
  if (offset >= static_cast<int64_t>(text.size())) return source_bytes;
  const Run& run = runs[RunAt(runs, offset)];
  return run.changed ? run.source_begin : run.source_begin + (offset - run.begin);
}

int64_t NfcText::SourceEnd(int64_t offset) const {
  if (runs.empty()) return offset;
  if (offset <= 0) return 0;
  const size_t at = RunAt(runs, offset - 1);
  if (!runs[at].changed) return runs[at].source_begin + (offset - runs[at].begin);
  return at + 1 < runs.size() ? runs[at + 1].source_begin : source_bytes;
}

absl::Status NormalizeNfc(std::string_view text, NfcText* out) {
  out->text = text;
  out->runs.clear();
  out->source_bytes = static_cast<int64_t>(text.size());
  if (PlainlyNfc(text)) return absl::OkStatus();
  UErrorCode code = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = NfcOfUnicode9(&code);
  ThrowIfOutOfMemory(code);
  if (U_FAILURE(code)) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL", std::string("ICU has no NFC data: ") + u_errorName(code));
  }
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  if (nfc->isNormalizedUTF8(piece, code) && U_SUCCESS(code)) return absl::OkStatus();
  code = U_ZERO_ERROR;
  out->storage.clear();
  icu::StringByteSink<std::string> sink(&out->storage, static_cast<int32_t>(text.size()));
  icu::Edits edits;
  nfc->normalizeUTF8(0, piece, sink, &edits, code);
  ThrowIfOutOfMemory(code);
  if (U_FAILURE(code)) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL", std::string("ICU normalisation: ") + u_errorName(code));
  }
  out->text = out->storage;
  auto it = edits.getFineIterator();
  while (it.next(code) && U_SUCCESS(code)) {
    out->runs.push_back({it.destinationIndex(), it.sourceIndex(), static_cast<bool>(it.hasChange())});
  }
  if (out->runs.empty()) out->runs.push_back({0, 0, true});
  return absl::OkStatus();
}

}  // namespace longhaul::data
