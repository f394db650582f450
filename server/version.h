// The version that longhauld reports: the project's (top CMakeLists.txt).
#pragma once

namespace longhaul::server {

inline constexpr char kVersion[] = LONGHAUL_VERSION;

}  // namespace longhaul::server
