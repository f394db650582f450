#include "base/random.h"

#include <unistd.h>

#include <array>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace longhaul {
namespace {

uint64_t SplitMix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

}  // namespace

std::vector<int64_t> EpochOrder(int64_t n, uint64_t seed, int64_t epoch) {
  LH_CHECK(n >= 0, std::to_string(n));
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  Mt19937 generator(static_cast<Mt19937::result_type>(seed + static_cast<uint64_t>(epoch)));
  for (int64_t i = 0; i + 1 < n; ++i) {
    const int64_t j = i + static_cast<int64_t>(uint64_t{generator()} % static_cast<uint64_t>(n - i));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
  }
  return order;
}

// The key goes through the finaliser first: otherwise key + golden would give the same stream, shifted by one.
uint64_t CounterBits(uint64_t key, uint64_t counter) {
  return SplitMix64(SplitMix64(key + kGolden) + (counter + 1) * kGolden);
}

double CounterUniform(uint64_t key, uint64_t counter) {
  return static_cast<double>(CounterBits(key, counter) >> 11) * 0x1.0p-53;
}

std::string RandomId() {
  constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
  std::array<unsigned char, 20> bytes{};
  LH_CHECK(::getentropy(bytes.data(), bytes.size()) == 0, "getentropy");
  std::string id;
  for (const unsigned char byte : bytes) id += kAlphabet[byte & 31];
  return id;
}

}  // namespace longhaul
