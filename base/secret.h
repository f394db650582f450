// Secrets are compared and authenticated here, so that the time taken tells nothing about them. Pure, thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace longhaul {

// The time taken depends on the sizes alone.
bool SecretsEqual(std::string_view a, std::string_view b);

// 64 lower-case hex digits.
std::string HmacSha256Hex(std::string_view key, std::string_view message);

}  // namespace longhaul
