// How every program of Longhaul tells an error: what happened, the fields at fault, what to do; and what it exits with.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/program/exit_codes.h"

namespace longhaul::program {

// Where the file system is at fault, this machine's is, not a server's: the reason becomes LOCAL_FILE, for the exit
// code and the advice. Any other status stays.
absl::Status LocalFileError(const absl::Status& status);

// ErrorAdvice, else what is known of the reason or the code; "" where that is nothing.
std::string WhatToDo(const absl::Status& status);

ExitCode ExitCodeFor(const absl::Status& status);

// "PROGRAM: error: MESSAGE [REASON]", a line a field at fault, "what to do: ..." (`fallback` where WhatToDo is empty);
// ends with a line break. REQUIRES: not OK.
std::string DescribeError(const std::string& program, const absl::Status& status, const std::string& fallback);

// The same in one line, as a daemon's log wants it; the message has the fields.
std::string DescribeErrorInLine(const std::string& program, const absl::Status& status, const std::string& fallback);

// Before a program that printed data ends: false, told on standard error, where standard output could not be written
// (a full disk, a closed pipe).
bool FlushOutput(const std::string& program);

}  // namespace longhaul::program
