#include "kernels/host_oom.h"

#include <new>

#include "dnnl.hpp"

namespace longhaul::kernels {

bool IsHostOom(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  const auto* const dnnl_error = dynamic_cast<const dnnl::error*>(&error);
  return dnnl_error != nullptr && dnnl_error->status == dnnl_out_of_memory;
}

}  // namespace longhaul::kernels
