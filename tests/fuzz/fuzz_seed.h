// The seed of the mutations: one fixed value, so that CI replays the same corpus every time; tests/soak.sh sets others.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace longhaul {

// LONGHAUL_FUZZ_SEED, a decimal number, where it is set.
inline uint32_t FuzzSeed() {
  const char* const text = std::getenv("LONGHAUL_FUZZ_SEED");
  return text == nullptr ? 20240607u : static_cast<uint32_t>(std::strtoul(text, nullptr, 10));
}

}  // namespace longhaul
