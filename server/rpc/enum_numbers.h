// The scheduler's enums carry the numbers of the protos. The proof is in enum_numbers.cc; this is the cast that relies
// on it.
#pragma once

namespace longhaul::server {

template <typename Proto, typename Domain>
Proto NumberOf(Domain value) {
  return static_cast<Proto>(static_cast<int>(value));
}

}  // namespace longhaul::server
