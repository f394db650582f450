// How fuzz targets are run: in CI a fixed number of fixed seeds; in a soak LONGHAUL_FUZZ_SECONDS=600 goes on with new
// seeds until that time is over, from LONGHAUL_FUZZ_SEED on, so that a soak continues where the one before ended. A
// failure names its seed; LONGHAUL_FUZZ_SEED=N LONGHAUL_FUZZ_SECONDS=0 runs that one alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>

#include "gtest/gtest.h"

namespace longhaul {

inline std::optional<long> FuzzVariable(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  return std::strtol(text, nullptr, 10);
}

// `body` runs one seed to its end.
inline void FuzzSeeds(uint32_t ci_seeds, const std::function<void(uint32_t seed)>& body) {
  const std::optional<long> seconds = FuzzVariable("LONGHAUL_FUZZ_SECONDS");
  const auto first = static_cast<uint32_t>(FuzzVariable("LONGHAUL_FUZZ_SEED").value_or(seconds ? 1'000'000 : 1));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds.value_or(0));
  uint32_t seed = first;
  while (true) {
    // Without an end of line: a crash leaves its seed as the last words.
    if (seconds) std::fprintf(stderr, "\rseed %u ", seed);
    SCOPED_TRACE("LONGHAUL_FUZZ_SEED=" + std::to_string(seed) + " LONGHAUL_FUZZ_SECONDS=0");
    body(seed++);
    if (::testing::Test::HasFailure()) break;
    if (seconds ? std::chrono::steady_clock::now() >= end : seed - first >= ci_seeds) break;
  }
  if (seconds) std::fprintf(stderr, "\n%u seeds, from %u to %u\n", seed - first, first, seed - 1);
}

}  // namespace longhaul
