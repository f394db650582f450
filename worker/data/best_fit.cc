#include "worker/data/best_fit.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "base/check.h"

namespace longhaul::data {

std::vector<std::vector<int32_t>> BestFitRows(const std::vector<int64_t>& lengths, int64_t row_tokens) {
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
  });
  std::vector<std::vector<int32_t>> rows;
  // Room left -> rows with that much; of equals the newest row is filled first.
  std::map<int64_t, std::vector<size_t>, std::less<>> open;
  for (const int32_t index : order) {
    const int64_t length = lengths[static_cast<size_t>(index)];
    LH_CHECK(length <= row_tokens);
    auto fit = open.lower_bound(length);
    size_t row = rows.size();
    int64_t room = row_tokens;
    if (fit == open.end()) {
      rows.emplace_back();
    } else {
      row = fit->second.back();
      room = fit->first;
      fit->second.pop_back();
      if (fit->second.empty()) open.erase(fit);
    }
    rows[row].push_back(index);
    if (room > length) open[room - length].push_back(row);
  }
  return rows;
}

}  // namespace longhaul::data
