// What happens in a simulated run, as data: a seed for everything small (latencies, losses, what trainers do) and a
// list of steps for everything that somebody does or that breaks. Every sublist of a trace is a trace, so that a
// failing one shrinks by leaving steps out; as text it is kept and replayed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::simulation {

enum class Op {
  kCreate,       // a: the job's shape
  kCancel,       // a: which job, as below
  kPause,        //
  kResume,       //
  kDelete,       //
  kCrash,        // the scheduler's process dies; a: for how long
  kLieCommit,    // it dies between a commit and all that follows
  kStandStill,   // it stands still; b: for how long
  kPowerCut,     // its machine loses power after a more changes of the disk
  kStoreFails,   // the next a commits fail, or all for a time, by b
  kWritesFail,   // the next a writes fail
  kAgentDies,    // a: which worker; its trainers go on
  kMachineDies,  // a: which worker
  kDiskLost,     // a: which worker; its attempts' folders are gone
  kAgentStarts,  // a: which worker
  kPartition,    // a: which worker, b: for how long
  kStall,        // a: which worker, b: for how long every process of it stands still
  kTrainerDies,  // a: which worker, b: which trainer and why
  kDrain,        // a: which worker, b: on or off
  kCollect,      // the minute's garbage collection
  kBlobLost,     // a: which blob rots on the scheduler's disk
  kStaleWrite,   // a: which job; somebody writes under an old epoch
  kWallStep,     // a: the wall clock is set
  kWait,         // nothing but time
};
inline constexpr int kOps = static_cast<int>(Op::kWait) + 1;
const char* Name(Op op);

struct Step {
  Op op = Op::kWait;
  uint64_t a = 0;
  uint64_t b = 0;
  uint64_t after_permille = 0;  // of a lease, since the step before
};

struct Trace {
  uint64_t seed = 0;
  bool disk = false;  // on SQLite and files that lose power, else in memory
  std::vector<Step> steps;
};

Trace MakeTrace(uint64_t seed, bool disk);
std::string ToText(const Trace& trace);
// INVALID_ARGUMENT names the line.
absl::StatusOr<Trace> FromText(const std::string& text);

}  // namespace longhaul::simulation
