#include "base/format.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <vector>

#include "base/error.h"

namespace longhaul {
namespace {

template <typename... Args>
std::string Print(const char* format, Args... args) {
  char buffer[96];
  const int length = std::snprintf(buffer, sizeof(buffer), format, args...);
  return std::string(buffer, static_cast<size_t>(std::clamp<int>(length, 0, sizeof(buffer) - 1)));
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// "" and "B" are 1; "KiB".."EiB" powers of 1024; "kB".."EB" powers of 1000. Case does not matter.
std::optional<int64_t> UnitBytes(std::string_view unit) {
  if (unit.empty()) return 1;
  if (Lower(unit.back()) != 'b') return std::nullopt;
  unit.remove_suffix(1);
  if (unit.empty()) return 1;
  const bool binary = unit.size() == 2 && Lower(unit[1]) == 'i';
  const size_t power = std::string_view("kmgtpe").find(Lower(unit[0]));
  if (power == std::string_view::npos || (unit.size() != 1 && !binary)) return std::nullopt;
  int64_t bytes = 1;
  for (size_t i = 0; i <= power; ++i) bytes *= binary ? 1024 : 1000;
  return bytes;
}

// Optimal string alignment: insertions, deletions, substitutions, and swaps of neighbours, each costing 1.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::array<std::vector<size_t>, 3> rows;
  for (std::vector<size_t>& row : rows) row.resize(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) rows[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    std::vector<size_t>& row = rows[i % 3];
    const std::vector<size_t>& above = rows[(i + 2) % 3];
    const std::vector<size_t>& two_above = rows[(i + 1) % 3];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], two_above[j - 2] + 1);
    }
  }
  return rows[a.size() % 3][b.size()];
}

}  // namespace

std::string FormatBytes(int64_t bytes) {
  if (bytes > -1024 && bytes < 1024) return std::to_string(bytes) + " B";
  constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.995 would print as 1024.00.
  while (std::abs(value) >= 1023.995 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return Print("%.2f %s", value, kUnits[unit]);
}

std::string FormatDuration(double seconds) {
  if (!(std::abs(seconds) < 1e15)) return "unknown";
  if (seconds < 0) {
    const std::string positive = FormatDuration(-seconds);
    return positive == "0.0s" ? positive : "-" + positive;
  }
  if (seconds < 59.95) return Print("%.1fs", seconds);
  const long long whole = std::llround(seconds);
  if (whole < 3600) return Print("%lldm %02llds", whole / 60, whole % 60);
  if (whole < 1000 * 3600LL) return Print("%lldh %02lldm", whole / 3600, whole % 3600 / 60);
  const long long days = whole / 86'400;
  return days < 10'000 ? Print("%lld days", days) : Print("%lld years", days / 365);
}

std::string FormatCount(int64_t n) {
  std::string text = std::to_string(n);
  const size_t first = n < 0 ? 1 : 0;
  for (size_t i = text.size(); i > first + 3;) {
    i -= 3;
    text.insert(i, 1, ',');
  }
  return text;
}

std::string FormatTimestamp(int64_t wall_micros) {
  using std::chrono::floor;
  const std::chrono::sys_time<std::chrono::microseconds> time{std::chrono::microseconds(wall_micros)};
  const auto day = floor<std::chrono::days>(time);
  const std::chrono::year_month_day date(day);
  const auto ms = floor<std::chrono::milliseconds>(time - day).count();
  return Print("%04d-%02u-%02uT%02lld:%02lld:%02lld.%03lldZ", static_cast<int>(date.year()),
               static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
               static_cast<long long>(ms / 3'600'000), static_cast<long long>(ms / 60'000 % 60),
               static_cast<long long>(ms / 1000 % 60), static_cast<long long>(ms % 1000));
}

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  const auto invalid = [&](const std::string& why) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_SIZE", "'" + std::string(text) + "' " + why);
  };
  std::string_view rest = text;
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  while (!rest.empty() && rest.back() == ' ') rest.remove_suffix(1);
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const std::string too_large = "is too large; the most is " + std::to_string(kMax) + " bytes";

  if (rest.empty() || !IsDigit(rest.front())) return invalid("is not a size; write it as 8GiB, 512 MiB or 1000");
  int64_t whole = 0;
  for (; !rest.empty() && IsDigit(rest.front()); rest.remove_prefix(1)) {
    const int digit = rest.front() - '0';
    if (whole > (kMax - digit) / 10) return invalid(too_large);
    whole = whole * 10 + digit;
  }
  long double fraction = 0;
  const bool has_fraction = !rest.empty() && rest.front() == '.';
  if (has_fraction) {
    rest.remove_prefix(1);
    if (rest.empty() || !IsDigit(rest.front())) return invalid("has no digit after its point");
    long double scale = 1;
    for (; !rest.empty() && IsDigit(rest.front()); rest.remove_prefix(1)) {
      scale /= 10;
      fraction += scale * static_cast<long double>(rest.front() - '0');
    }
  }
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  const std::optional<int64_t> unit = UnitBytes(rest);
  if (!unit.has_value()) return invalid("has an unknown unit; use B, KiB, MiB, GiB, TiB or kB, MB, GB, TB");
  if (has_fraction && *unit == 1) return invalid("is not a whole number of bytes");
  if (whole > kMax / *unit) return invalid(too_large);
  // The half byte absorbs the rounding of 0.1 + 0.01 + ..., so that 1.1 kB is 1100 bytes.
  const int64_t part = static_cast<int64_t>(std::floor(fraction * static_cast<long double>(*unit) + 0.5L));
  if (part > kMax - whole * *unit) return invalid(too_large);
  return whole * *unit + part;
}

std::string NearestWord(std::string_view word, const std::string* begin, const std::string* end) {
  constexpr size_t kMaxWordBytes = 256;  // the distance costs the product of the lengths
  if (word.empty() || word.size() > kMaxWordBytes) return "";
  // A third of the word may be wrong, three letters at most, and never the whole word.
  const size_t allowed = std::min(std::clamp<size_t>(word.size() / 3, 1, 3), word.size() - 1);
  std::string nearest;
  size_t least = allowed + 1;
  for (const std::string* candidate = begin; candidate != end; ++candidate) {
    const size_t longer = std::max(candidate->size(), word.size());
    const size_t shorter = std::min(candidate->size(), word.size());
    if (longer - shorter >= least) continue;  // the lengths alone differ by more
    const size_t distance = EditDistance(word, *candidate);
    if (distance < least) {
      least = distance;
      nearest = *candidate;
    }
  }
  return nearest;
}

}  // namespace longhaul
