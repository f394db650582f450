// Names in a call's metadata, beside gRPC's own.
#pragma once

namespace longhaul {

// A worker's session, as OpenSession answered it, on every call that its agent makes: by it the scheduler tells apart
// workers that share a token and an address. A call without it has the limits of its token on its host.
inline constexpr char kSessionMetadata[] = "longhaul-session";

}  // namespace longhaul
