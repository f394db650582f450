// events.log: what a trainer tells, one frame an event: u32 length (little-endian), u32 CRC32C of the payload, the
// serialised TrainerEvent. A frame that is cut short or damaged ends the log: a reader stops before it and asks again
// later, a writer that re-opens cuts it off. So a crash in the middle of a write costs that one event and nothing else.
//
// Not thread-safe: one writer, and a reader of one's own for each thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/env.h"
#include "longhaul/v1/trainer.pb.h"

namespace longhaul::attempt {

inline constexpr int64_t kEventFrameHeaderBytes = 8;

// The frame of an event. REQUIRES: the event serialises to at most limits::kMaxTrainerEventBytes.
std::string EncodeEventFrame(const v1::TrainerEvent& event);

class EventLogWriter {
 public:
  // Creates the file, or continues behind its last whole frame.
  static absl::StatusOr<EventLogWriter> Open(const std::string& path);

  // With the kernel when it returns: visible to readers, not yet durable. RESOURCE_EXHAUSTED, reason EVENT_TOO_LARGE or
  // DISK_FULL.
  absl::Status Append(const v1::TrainerEvent& event);
  absl::Status Sync() { return file_.Sync(); }

 private:
  explicit EventLogWriter(AppendFile file) : file_(std::move(file)) {}
  AppendFile file_;
};

class EventLogReader {
 public:
  explicit EventLogReader(std::string path, int64_t offset = 0) : path_(std::move(path)), offset_(offset) {}

  // The events behind offset() that are whole by now, in order; at most limits::kMaxEventsPerRead of them, so ask until
  // it returns none. A file that is not there yet has none; one that cannot be read is an error that names it, and
  // nothing is skipped.
  // `ends`: where each of them ends, and a reader with that offset goes on.
  absl::StatusOr<std::vector<v1::TrainerEvent>> ReadNew(std::vector<int64_t>* ends = nullptr);

  int64_t offset() const { return offset_; }

 private:
  std::string path_;
  int64_t offset_ = 0;
};

}  // namespace longhaul::attempt
