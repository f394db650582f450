// SHA-256 (names of blobs, models, requests) and CRC32C (frames of the trainer's event log).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace longhaul {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(std::string_view bytes);
  std::string HexDigest();  // 64 lower-case hex digits; call once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(std::string_view bytes);
// `cancelled` is asked once a chunk; true: CANCELLED.
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path, const std::function<bool()>& cancelled = nullptr);
bool IsSha256Hex(std::string_view text);

// Castagnoli polynomial, as in iSCSI; Crc32c("123456789") == 0xE3069283.
uint32_t Crc32c(std::string_view bytes, uint32_t seed = 0);

}  // namespace longhaul
