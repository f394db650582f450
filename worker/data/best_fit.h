// Which documents share a row: best fit, longest first. Pure. Tests: tests/worker/data/packing_test.cc
#pragma once

#include <cstdint>
#include <vector>

namespace longhaul::data {

// Indices into `lengths`, a row each; no row has more than row_tokens, every index is in one. O(n log n); ties keep
// their order. REQUIRES: no length is above row_tokens.
std::vector<std::vector<int32_t>> BestFitRows(const std::vector<int64_t>& lengths, int64_t row_tokens);

}  // namespace longhaul::data
