// Text from anywhere as the string fields of messages demand it: a message with other bytes in a string cannot be
// parsed. Pure, thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace longhaul::attempt {

// Every byte that is no UTF-8, and NUL, becomes '?'.
std::string ToUtf8(std::string_view text);
// And at most max_bytes of it, cut between characters.
std::string CutUtf8(std::string_view text, size_t max_bytes);

}  // namespace longhaul::attempt
