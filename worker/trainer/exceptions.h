// What is thrown in a trainer ends as an exit with a reason, wherever it is thrown.
#pragma once

#include <exception>

#include "longhaul/v1/trainer.pb.h"

namespace longhaul::trainer {

// FAILED: HOST_OOM for memory that the host did not have, CudaFailure's reasons for a CUDA call, else INTERNAL.
v1::TrainerExit ExitOfException(const std::exception& error);

// From here on, where a shortage of memory is thrown that nobody catches (in another thread, in a parallel region,
// before there is an event log) the process says so on stderr and ends with attempt::kExitHostOom instead of SIGABRT,
// which is a crash and would be tried again. Whatever else is thrown aborts as before. Process-wide.
void ExitOnHostOom();

}  // namespace longhaul::trainer
