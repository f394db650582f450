#include "worker/trainer/exceptions.h"

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/error.h"
#include "kernels/cuda_error.h"
#include "kernels/host_oom.h"
#include "worker/attempt/exit_codes.h"
#include "worker/trainer/events.h"

namespace longhaul::trainer {
namespace {

std::terminate_handler others = nullptr;

bool OfHostOom(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    return kernels::IsHostOom(error);
  } catch (...) {
    return false;
  }
}

[[noreturn]] void OnTerminate() {
  if (const std::exception_ptr thrown = std::current_exception(); thrown != nullptr && OfHostOom(thrown)) {
    // No memory for a stream's buffer, and no destructors of what other threads still use.
    constexpr std::string_view kWhy = "an allocation outside the plan failed [HOST_OOM]\n";
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kWhy.data(), kWhy.size());
    ::_exit(attempt::kExitHostOom);
  }
  if (others != nullptr) others();
  std::abort();
}

}  // namespace

v1::TrainerExit ExitOfException(const std::exception& error) {
  if (kernels::IsHostOom(error)) {
    return ExitOfError(MakeError(absl::StatusCode::kResourceExhausted, "HOST_OOM",
                                 std::string("an allocation outside the plan failed: ") + error.what()));
  }
  if (const auto* const cuda = dynamic_cast<const kernels::CudaError*>(&error); cuda != nullptr) {
    return ExitOfError(CudaFailure(*cuda, "after the last step"));
  }
  return ExitOfError(MakeError(absl::StatusCode::kInternal, "INTERNAL", std::string("exception: ") + error.what()));
}

void ExitOnHostOom() {
  if (const std::terminate_handler before = std::set_terminate(OnTerminate); before != OnTerminate) others = before;
}

}  // namespace longhaul::trainer
