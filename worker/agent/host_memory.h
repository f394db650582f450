// How much of this machine's RAM attempts may use.
#pragma once

#include <cstdint>
#include <string>

namespace longhaul::agent {

// The most that attempts could ever use of `total` bytes: all but a reserve for the operating system, the agent and a
// scheduler beside it, in whole GiB (small machines: in steps of 256 MiB), so that a class of devices named by it is
// the same after a restart, and on machines of one kind.
int64_t PlannableHostBytes(int64_t total_bytes);

// What they may use now, of `plannable_bytes`: other programs keep what they have, and what our own trainers hold is
// theirs still. So an agent that restarts beside them offers what the one before it did.
int64_t OfferedHostBytes(int64_t plannable_bytes, int64_t available_bytes, int64_t own_trainers_bytes);

// Anonymous memory of the trainers that earlier agents left at work: the attempt folders with a live pid.
int64_t OwnTrainersBytes(const std::string& state_dir);

}  // namespace longhaul::agent
