// Hosts of this machine, told by number: "127.example.org" is somebody else's.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace longhaul {

// "localhost", 127.0.0.0/8 or ::1, without brackets and port.
bool IsLoopbackHost(const std::string& host);

// The same of "HOST:PORT", with a bracketed IPv6 address: what a client connects to.
bool IsLoopbackTarget(const std::string& target);

// INVALID_FIELD of `field` unless `target` is "HOST:PORT" with a port of 1 to 65,535, or has a scheme of gRPC's
// ("unix:PATH", "dns:///NAME").
absl::Status CheckTarget(const std::string& field, const std::string& target);

}  // namespace longhaul
