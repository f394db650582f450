// Named places where a test makes the process fail. Armed by the environment variable
// LONGHAUL_FAILPOINTS="name=crash,name2=error,name3=sleep:50" (sleep in ms) or by ArmFailpoint. Disarmed: one atomic
// load.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace longhaul {

// crash: raises SIGKILL on ourselves. error: returns UNAVAILABLE naming the failpoint. sleep: sleeps, then OK.
absl::Status Failpoint(std::string_view name);
void ArmFailpoint(const std::string& name, const std::string& action);
void DisarmFailpoints();

}  // namespace longhaul
