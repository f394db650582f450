#include "base/random.h"

#include <unistd.h>

#include <array>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/limits.h"

namespace longhaul {
namespace {

// In the order of their bytes.
constexpr char kAlphabet[] = "234567abcdefghijklmnopqrstuvwxyz";

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

std::string RandomId() {
  std::array<unsigned char, 20> bytes{};
  LH_CHECK(::getentropy(bytes.data(), bytes.size()) == 0, "getentropy");
  std::string id;
  for (const unsigned char byte : bytes) id += kAlphabet[byte & 31];
  return id;
}

std::string IdBurst::Next() {
  constexpr size_t kBeginningBytes = 4;
  std::string id = RandomId();
  if (beginning_.empty() || count_ == limits::kMaxIdsPerBurst) {
    beginning_ = id.substr(0, kBeginningBytes);
    count_ = 0;
  }
  id.replace(0, kBeginningBytes, beginning_);
  id[kBeginningBytes] = kAlphabet[count_ / 32];
  id[kBeginningBytes + 1] = kAlphabet[count_ % 32];
  ++count_;
  return id;
}

}  // namespace longhaul
