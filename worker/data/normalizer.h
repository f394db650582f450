// Unicode NFC with the way back: which bytes of the source each byte of the result came from.
// Thread-safe: no state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::data {

// A text in NFC. `text` views the source itself where that was in NFC already (then `runs` is empty).
struct NfcText {
  struct Run {
    int64_t begin = 0;         // in the normalised text, bytes
    int64_t source_begin = 0;  // in the source, bytes
    bool changed = false;      // false: byte for byte the same
  };
  std::string_view text;
  std::string storage;
  std::vector<Run> runs;
  int64_t source_bytes = 0;

  NfcText() = default;
  NfcText(const NfcText&) = delete;
  NfcText& operator=(const NfcText&) = delete;

  // The source offset at which the character at normalised offset `offset` begins; inside a changed run, the run's
  // begin.
  int64_t SourceBegin(int64_t offset) const;
  // The source offset at which the text before `offset` ends; inside a changed run, the run's end.
  int64_t SourceEnd(int64_t offset) const;
};

// Fills *out. REQUIRES: valid UTF-8 below 2 GiB; `text` outlives *out.
absl::Status NormalizeNfc(std::string_view text, NfcText* out);

}  // namespace longhaul::data
