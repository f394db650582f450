// What the workers of a fleet will have free from now on, as one scheduling pass foresees it: what is free now, the
// predicted ends of what runs and of what the pass starts, and the reservations it makes. Times are boot micros.
// Valid as long as the fleet and the free resources it was made on; not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/core/scheduler.h"
#include "server/core/scheduler_table.h"

namespace longhaul::server {

class Timeline {
 public:
  // `free` is what the pass takes from as it starts attempts.
  Timeline(const scheduling::Fleet& fleet, const scheduling::FreeResources& free, int64_t now);

  // `device`: an index into fleet.device_worker, or -1 = none.
  void AddStart(int worker, int device, const Need& need, int64_t end);
  void Reserve(int worker, int device, const Need& need, int64_t start, int64_t end, int reservation);
  // The attempt at `running` of the worker's slot is asked to stop and is gone by `end`.
  void Stop(int worker, int running, int64_t end);

  bool HasReservation(int worker) const;
  // The first reservation that an attempt from now until `end` would delay; -1 = none. REQUIRES: it fits now.
  int Delayed(int worker, int device, const Need& need, int64_t end) const;
  // The earliest start of an attempt of `duration` that delays nothing reserved; kNeverMicros where what runs and what
  // is reserved would have to be more than the worker has, or where it is not before `before`.
  int64_t Earliest(int worker, int device, const Need& need, int64_t duration, int64_t before = kNeverMicros) const;
  // Lower bound of Earliest for a need that does not fit now: the first predicted end on the worker.
  int64_t FirstEnd(int worker) const;
  // Jobs whose ends a start at `start` waits for: the last ones first, at most `most`.
  std::vector<std::string> Blockers(int worker, int device, const Need& need, int64_t start, int most) const;
  // Free now, of the device and its worker.
  Need FreeNow(int worker, int device) const;

 private:
  struct Return {
    int64_t end = 0;
    int device = -1;
    Need need;
  };
  struct Booking {
    int64_t start = 0;
    int64_t end = 0;
    int device = -1;
    Need need;
    int reservation = 0;
  };
  struct Overlay {
    std::vector<Return> returns;  // the slot's running attempts first, in their order; then what the pass started
    std::vector<Booking> bookings;
  };

  Overlay& Touch(int worker);
  int64_t Clamp(int64_t end) const;
  Return ReturnOf(const scheduling::WorkerState& state, size_t running) const;
  Need FreeAt(const Overlay& overlay, int worker, int device, int64_t at) const;
  bool FitsThroughout(const Overlay& overlay, int worker, int device, const Need& need, int64_t start,
                      int64_t end) const;

  const scheduling::Fleet& fleet_;
  const scheduling::FreeResources& free_;
  const int64_t now_;
  std::vector<int> overlay_of_;  // by worker; -1 = none
  std::vector<Overlay> overlays_;
};

}  // namespace longhaul::server
