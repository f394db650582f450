// Time as a value that is handed in: nothing in Longhaul calls now() by itself.
#pragma once

#include <atomic>
#include <cstdint>

namespace longhaul {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds of CLOCK_BOOTTIME: monotonic, counts suspend. Leases and timeouts use it, and only within one machine.
  virtual int64_t BootNanos() const = 0;
  // Microseconds since the Unix epoch. For display, deadlines and backoff only.
  virtual int64_t WallMicros() const = 0;
};

class RealClock final : public Clock {
 public:
  int64_t BootNanos() const override;
  int64_t WallMicros() const override;
};

// A clock that moves only when told to.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(int64_t boot_nanos = 1'000'000'000, int64_t wall_micros = 1'700'000'000'000'000)
      : boot_nanos_(boot_nanos), wall_micros_(wall_micros) {}
  int64_t BootNanos() const override { return boot_nanos_.load(); }
  int64_t WallMicros() const override { return wall_micros_.load(); }
  void AdvanceMillis(int64_t ms) {
    boot_nanos_ += ms * 1'000'000;
    wall_micros_ += ms * 1'000;
  }
  void AdvanceNanosTo(int64_t boot_nanos) {
    const int64_t nanos = boot_nanos - boot_nanos_;
    boot_nanos_ = boot_nanos;
    wall_micros_ += nanos / 1'000;
  }
  // An operator, or NTP, sets the clock on the wall.
  void StepWall(int64_t micros) { wall_micros_ += micros; }

 private:
  std::atomic<int64_t> boot_nanos_;
  std::atomic<int64_t> wall_micros_;
};

}  // namespace longhaul
