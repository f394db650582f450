// A shortage of this machine's memory, however what met it says so.
#pragma once

#include <exception>

namespace longhaul::kernels {

// std::bad_alloc, or oneDNN's word for the same. Thread-safe.
bool IsHostOom(const std::exception& error);

}  // namespace longhaul::kernels
