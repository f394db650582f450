#include "server/core/scheduler_timeline.h"

#include <algorithm>

namespace longhaul::server {

using scheduling::WorkerState;

namespace {

// What should have ended already is taken to end in a moment.
constexpr int64_t kOverdueMicros = 1'000'000;

void Add(const Need& need, bool same_device, Need* free) {
  if (same_device) free->device_bytes += need.device_bytes;
  free->host_bytes += need.host_bytes;
  free->disk_bytes += need.disk_bytes;
  free->cpu_threads += need.cpu_threads;
  free->attempts += need.attempts;
}

void Subtract(const Need& need, bool same_device, Need* free) {
  if (same_device) free->device_bytes -= need.device_bytes;
  free->host_bytes -= need.host_bytes;
  free->disk_bytes -= need.disk_bytes;
  free->cpu_threads -= need.cpu_threads;
  free->attempts -= need.attempts;
}

int64_t SumEnd(int64_t start, int64_t duration) {
  return start > kNeverMicros - duration ? kNeverMicros : start + duration;
}

}  // namespace

Timeline::Timeline(const scheduling::Fleet& fleet, const scheduling::FreeResources& free, int64_t now)
    : fleet_(fleet), free_(free), now_(now), overlay_of_(fleet.workers.size(), -1) {}

int64_t Timeline::Clamp(int64_t end) const { return end > now_ ? end : now_ + kOverdueMicros; }

Timeline::Return Timeline::ReturnOf(const WorkerState& state, size_t running) const {
  const scheduling::Release& release = state.releases[running];
  return {Clamp(release.end_boot_micros), release.device < 0 ? -1 : state.first_device + release.device, release.need};
}

Timeline::Overlay& Timeline::Touch(int worker) {
  int& index = overlay_of_[static_cast<size_t>(worker)];
  if (index < 0) {
    index = static_cast<int>(overlays_.size());
    Overlay overlay;
    const WorkerState& state = *fleet_.workers[static_cast<size_t>(worker)];
    for (size_t i = 0; i < state.slot.running.size(); ++i) overlay.returns.push_back(ReturnOf(state, i));
    overlays_.push_back(std::move(overlay));
  }
  return overlays_[static_cast<size_t>(index)];
}

void Timeline::AddStart(int worker, int device, const Need& need, int64_t end) {
  Touch(worker).returns.push_back({Clamp(end), device, need});
}

void Timeline::Reserve(int worker, int device, const Need& need, int64_t start, int64_t end, int reservation) {
  Touch(worker).bookings.push_back({start, end, device, need, reservation});
}

void Timeline::Stop(int worker, int running, int64_t end) {
  Touch(worker).returns[static_cast<size_t>(running)].end = end;
}

bool Timeline::HasReservation(int worker) const {
  const int index = overlay_of_[static_cast<size_t>(worker)];
  return index >= 0 && !overlays_[static_cast<size_t>(index)].bookings.empty();
}

Need Timeline::FreeNow(int worker, int device) const {
  const size_t w = static_cast<size_t>(worker);
  return {device < 0 ? 0 : free_.device_bytes[static_cast<size_t>(device)], free_.host_bytes[w], free_.disk_bytes[w],
          free_.cpu_threads[w], free_.attempts[w]};
}

Need Timeline::FreeAt(const Overlay& overlay, int worker, int device, int64_t at) const {
  Need free = FreeNow(worker, device);
  for (const Return& release : overlay.returns) {
    if (release.end <= at) Add(release.need, device >= 0 && release.device == device, &free);
  }
  for (const Booking& booking : overlay.bookings) {
    const bool active = booking.start <= at && at < booking.end;
    if (active) Subtract(booking.need, device >= 0 && booking.device == device, &free);
  }
  return free;
}

// Only the start of a booking takes something away, so that looking there is enough.
bool Timeline::FitsThroughout(const Overlay& overlay, int worker, int device, const Need& need, int64_t start,
                              int64_t end) const {
  if (!Covers(FreeAt(overlay, worker, device, start), need)) return false;
  return std::all_of(overlay.bookings.begin(), overlay.bookings.end(), [&](const Booking& booking) {
    return booking.start <= start || booking.start >= end ||
           Covers(FreeAt(overlay, worker, device, booking.start), need);
  });
}

int Timeline::Delayed(int worker, int device, const Need& need, int64_t end) const {
  const int index = overlay_of_[static_cast<size_t>(worker)];
  if (index < 0) return -1;
  const Overlay& overlay = overlays_[static_cast<size_t>(index)];
  for (const Booking& booking : overlay.bookings) {
    if (booking.start < end && !Covers(FreeAt(overlay, worker, device, booking.start), need)) {
      return booking.reservation;
    }
  }
  return -1;
}

int64_t Timeline::FirstEnd(int worker) const {
  const int index = overlay_of_[static_cast<size_t>(worker)];
  if (index >= 0) return now_;  // rare: looked at closely
  const int64_t end = fleet_.first_end_boot_micros[static_cast<size_t>(worker)];
  return end == kNeverMicros ? end : Clamp(end);
}

int64_t Timeline::Earliest(int worker, int device, const Need& need, int64_t duration, int64_t before) const {
  const int index = overlay_of_[static_cast<size_t>(worker)];
  if (index < 0) {
    Need free = FreeNow(worker, device);
    if (Covers(free, need)) return now_;
    const WorkerState& state = *fleet_.workers[static_cast<size_t>(worker)];
    const int of_worker = device < 0 ? -1 : device - state.first_device;
    for (const scheduling::Release& release : state.releases) {
      const int64_t end = Clamp(release.end_boot_micros);
      if (end >= before) return kNeverMicros;
      Add(release.need, of_worker >= 0 && release.device == of_worker, &free);
      if (Covers(free, need)) return end;
    }
    return kNeverMicros;
  }
  const Overlay& overlay = overlays_[static_cast<size_t>(index)];
  std::vector<int64_t> times = {now_};
  for (const Return& release : overlay.returns) times.push_back(release.end);
  for (const Booking& booking : overlay.bookings) times.push_back(booking.end);
  std::sort(times.begin(), times.end());
  for (const int64_t at : times) {
    if (at >= before) break;
    if (FitsThroughout(overlay, worker, device, need, at, SumEnd(at, duration))) return at;
  }
  return kNeverMicros;
}

std::vector<std::string> Timeline::Blockers(int worker, int device, const Need& need, int64_t start, int most) const {
  const WorkerState& state = *fleet_.workers[static_cast<size_t>(worker)];
  const Need free = FreeNow(worker, device);
  std::vector<std::string> blockers;
  for (size_t i = state.slot.running.size(); i-- > 0 && static_cast<int>(blockers.size()) < most;) {
    const RunningAttempt& attempt = state.slot.running[i];
    const Return release = ReturnOf(state, i);
    if (release.end > start) continue;
    // Its end helps where it gives back what is short now.
    const bool helps =
        (need.device_bytes > free.device_bytes && release.device == device && attempt.need.device_bytes > 0) ||
        (need.host_bytes > free.host_bytes && attempt.need.host_bytes > 0) ||
        (need.disk_bytes > free.disk_bytes && attempt.need.disk_bytes > 0) ||
        (need.cpu_threads > free.cpu_threads && attempt.need.cpu_threads > 0) ||
        (need.attempts > free.attempts && attempt.need.attempts > 0);
    if (helps && !attempt.job_id.empty()) blockers.push_back(attempt.job_id);
  }
  return blockers;
}

}  // namespace longhaul::server
