// What `longhaul` exits with, and longhaul-tool, which it becomes. Scripts rely on it: a number never changes its
// meaning. `longhaul --help` prints the table.
#pragma once

namespace longhaul::program {

enum ExitCode : int {
  kOk = 0,
  kJobFailed = 1,      // the job ended FAILED, or the job does not fit
  kInvalid = 2,        // usage, an invalid job, or an estimate that cannot be made
  kUnreachable = 3,    // no answer from the scheduler
  kNotFound = 4,       // no such job, worker or file on the server
  kCancelled = 5,      // the job ended CANCELLED
  kTimeout = 6,        // `wait --timeout` ran out; the job goes on
  kRefused = 7,        // not in the job's present state, or already exists
  kPermission = 8,     // not authenticated, or not allowed
  kInternal = 9,       // a local file could not be read or written, or a bug
  kInterrupted = 130,  // Ctrl-C; a job that was submitted goes on
};

inline constexpr char kExitCodeHelp[] =
    "Exit codes:\n"
    "  0  done; a job that was waited for SUCCEEDED; an estimate fits\n"
    "  1  the job ended FAILED, or does not fit\n"
    "  2  usage, an invalid job, or an estimate that cannot be made\n"
    "  3  the scheduler cannot be reached\n"
    "  4  no such job or worker\n"
    "  5  the job ended CANCELLED\n"
    "  6  wait --timeout ran out; the job goes on\n"
    "  7  refused: not in the job's present state, or it already exists\n"
    "  8  not authenticated, or not allowed\n"
    "  9  a local file could not be read or written, or an internal error\n"
    "  130  interrupted; a submitted job goes on\n";

}  // namespace longhaul::program
