// Random numbers that are handed in, never global.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace longhaul {

using Mt19937 = std::mt19937;

// The order of an epoch: identity array, then for i in 0..n-2 swap(i, i + draw % (n-i)), generator mt19937(seed +
// epoch). seed 42, n 10, epoch 0 -> 2 6 1 8 4 5 0 9 3 7.
std::vector<int64_t> EpochOrder(int64_t n, uint64_t seed, int64_t epoch);

// Counter-based (splitmix64 finaliser over key and counter): the same (key, counter) always gives the same bits,
// so that recomputation replays dropout without stored masks.
uint64_t CounterBits(uint64_t key, uint64_t counter);
double CounterUniform(uint64_t key, uint64_t counter);  // [0, 1)

// A lower-case base32 id body of 20 characters from the operating system's generator.
std::string RandomId();

}  // namespace longhaul
