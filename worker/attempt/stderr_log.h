// stderr.log as one long stream of bytes of which the last part is kept. The trainer, which alone writes it, rotates:
// past half of limits::kMaxStderrLogBytes the file becomes stderr.log.<begin>, named by the stream's offset of its
// first byte, and replaces the one before. So a reader that starts at any time knows where in the stream it is.
//
// Not thread-safe: one of each for a thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::attempt {

// Moves stderr.log aside and opens a new one as descriptor 2, if it has grown past `rotate_bytes`. Does nothing where
// descriptor 2 is not that file: a trainer that a person started writes to the terminal.
absl::Status RotateStderrIfLarge(const AttemptDir& dir, int64_t rotate_bytes);

struct LogChunk {
  int64_t offset = 0;  // of the stream; larger than asked for where the bytes in between have been rotated away
  std::string data;
};

// Up to max_bytes of the stream at `offset`; empty data where there is nothing yet.
absl::StatusOr<LogChunk> ReadStderr(const AttemptDir& dir, int64_t offset, int64_t max_bytes);

// The last max_bytes of the stream, cut at a character of UTF-8 and with every invalid byte replaced by '?': it travels
// in a string field.
std::string StderrTail(const AttemptDir& dir, int64_t max_bytes);

}  // namespace longhaul::attempt
