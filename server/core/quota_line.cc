#include "server/core/quota_line.h"

#include <algorithm>

namespace longhaul::server {

void QuotaLine::Take(const Need& need, int64_t end) {
  ++jobs_;
  held_.device_bytes += need.device_bytes;
  held_.host_bytes += need.host_bytes;
  held_.cpu_threads += need.cpu_threads;
  returns_.push({end, need});
}

int64_t QuotaLine::Earliest(const Need& need) {
  while (!HasRoom(need)) {
    if (returns_.empty()) return kNeverMicros;
    const Return& next = returns_.top();
    at_ = std::max(at_, next.end);
    --jobs_;
    held_.device_bytes -= next.need.device_bytes;
    held_.host_bytes -= next.need.host_bytes;
    held_.cpu_threads -= next.need.cpu_threads;
    returns_.pop();
  }
  return at_;
}

bool QuotaLine::HasRoom(const Need& need) const {
  return (quota_.jobs == 0 || jobs_ + 1 <= quota_.jobs) &&
         (quota_.device_bytes == 0 || held_.device_bytes + need.device_bytes <= quota_.device_bytes) &&
         (quota_.host_bytes == 0 || held_.host_bytes + need.host_bytes <= quota_.host_bytes) &&
         (quota_.cpu_threads == 0 || held_.cpu_threads + need.cpu_threads <= quota_.cpu_threads);
}

}  // namespace longhaul::server
