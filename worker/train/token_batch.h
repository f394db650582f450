// A micro-batch as the engine sees it: a flat list of tokens, documents one after the other, no padding. Borrowed.
#pragma once

#include <cstdint>
#include <functional>

namespace longhaul::train {

struct TokenBatch {
  int64_t rows = 0;                      // tokens
  const int32_t* ids = nullptr;          // [rows]
  const int32_t* labels = nullptr;       // [rows], the target predicted at each position; -100 = not trained
  const int32_t* positions = nullptr;    // [rows], from 0 in every document
  const int64_t* doc_offsets = nullptr;  // [docs + 1]
  int64_t docs = 0;
};

// Asked between layers; false ends the pass early and its results are void.
using KeepGoing = std::function<bool()>;

}  // namespace longhaul::train
