// The table-driven CRC32C that Crc32c (base/hash.h) falls back to where the CPU has no instruction for it. Same result.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

namespace longhaul {

uint32_t Crc32cPortable(std::string_view bytes, uint32_t seed = 0);

}  // namespace longhaul
