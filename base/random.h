// Random numbers that are handed in, never global.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/counter_rng.h"

namespace longhaul {

using Mt19937 = std::mt19937;

// The order of an epoch: identity array, then for i in 0..n-2 swap(i, i + draw % (n-i)), generator mt19937(seed +
// epoch). seed 42, n 10, epoch 0 -> 2 6 1 8 4 5 0 9 3 7.
std::vector<int64_t> EpochOrder(int64_t n, uint64_t seed, int64_t epoch);

// A lower-case base32 id body of 20 characters from the operating system's generator.
std::string RandomId();

// Ids as RandomId's, those of one burst neighbours: they begin with the same 4 random characters, 2 characters count
// (in the order of their bytes), 14 are random. What is written together lies together in an index, and yet the ids of
// two bursts differ in their first characters, so that a short beginning names one. Not thread-safe.
class IdBurst {
 public:
  std::string Next();
  // The next id begins a burst of its own.
  void End() { beginning_.clear(); }

 private:
  std::string beginning_;  // "" = drawn with the next id
  size_t count_ = 0;
};

}  // namespace longhaul
