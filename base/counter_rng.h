// Counter-based random bits (the finaliser of splitmix64 over key and counter): the same (key, counter) always gives
// the same bits, so that recomputation replays dropout without stored masks. Header-only and constexpr: host and device
// share it.
#pragma once

#include <cstdint>

namespace longhaul {

constexpr uint64_t SplitMix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline constexpr uint64_t kSplitMixStep = 0x9E3779B97F4A7C15u;

// The key goes through the finaliser first: otherwise key + step would give the same stream, shifted by one.
constexpr uint64_t CounterStream(uint64_t key) { return SplitMix64(key + kSplitMixStep); }
// Bits number `counter` of a stream.
constexpr uint64_t StreamBits(uint64_t stream, uint64_t counter) {
  return SplitMix64(stream + (counter + 1) * kSplitMixStep);
}
constexpr uint64_t CounterBits(uint64_t key, uint64_t counter) { return StreamBits(CounterStream(key), counter); }
// [0, 1), a multiple of 2^-53.
constexpr double CounterUniform(uint64_t key, uint64_t counter) {
  return static_cast<double>(CounterBits(key, counter) >> 11) * 0x1.0p-53;
}

}  // namespace longhaul
