// From a failing trace to the shortest one that still fails, each try in a process of its own, so that a CHECK or a
// crash is a finding like any other.
#pragma once

#include <functional>
#include <string>

#include "tests/simulation/trace.h"
#include "tests/simulation/world.h"

namespace longhaul::simulation {

// In a forked child. A death is a violation that carries the last lines of its stderr. REQUIRES: no other threads.
Outcome SimulateIsolated(const Trace& trace);

// Leaves out runs of steps, halving, then single ones, then shortens waits; keeps what `fails` still says of. At most
// `most_tries` calls. REQUIRES: fails(trace).
Trace Shrink(Trace trace, const std::function<bool(const Trace&)>& fails, int most_tries = 1'500);

// Shrinks by SimulateIsolated and tells everything that is needed to replay it.
std::string Explain(const Trace& failing);

}  // namespace longhaul::simulation
