// What longhaul-train's process ends with. The agent goes by the Exit event; these are for people and scripts, and for
// what happens before there is an event log or where none can be written.
#pragma once

namespace longhaul::attempt {

inline constexpr int kExitSucceeded = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitCheckpointed = 3;
inline constexpr int kExitCancelled = 4;
inline constexpr int kExitLeaseLost = 5;
inline constexpr int kExitFolderLocked = 6;  // another trainer works in this attempt directory
inline constexpr int kExitHostOom = 7;  // the host had no memory for it; where there is no Exit event, all that tells

}  // namespace longhaul::attempt
