#include "base/clock.h"

#include <time.h>

#include "base/check.h"

namespace longhaul {
namespace {

int64_t ReadNanos(clockid_t id) {
  timespec now{};
  LH_CHECK(clock_gettime(id, &now) == 0, "clock_gettime");
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

int64_t RealClock::BootNanos() const { return ReadNanos(CLOCK_BOOTTIME); }

int64_t RealClock::WallMicros() const { return ReadNanos(CLOCK_REALTIME) / 1'000; }

}  // namespace longhaul
