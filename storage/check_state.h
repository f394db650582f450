// Is a state folder whole? Reads one snapshot of the database, also while a scheduler runs on it, and the blobs' files;
// changes nothing. What it proves: SQLite's own structure; every row decodes and agrees with its columns; a job's
// events are dense and end in its state; an attempt is open exactly while its job holds a lease; every reference to a
// blob is counted and its file is there with its size (with hash_blobs: with its bytes).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::storage {

struct CheckOptions {
  bool hash_blobs = false;  // reads every byte
};

struct CheckReport {
  std::vector<std::string> problems;  // one sentence each, the first limits::kMaxCheckProblems
  int64_t problems_total = 0;
  int64_t jobs = 0;
  int64_t events = 0;
  int64_t blobs = 0;
  int64_t blob_bytes = 0;
  int64_t unrecorded_blobs = 0;  // files without a row: adopted or collected by the scheduler, no problem
};

// NOT_FOUND where there is no database; FAILED_PRECONDITION SCHEMA_TOO_OLD, SCHEMA_TOO_NEW, NOT_OURS.
absl::StatusOr<CheckReport> CheckState(const std::string& state_dir, const CheckOptions& options);

}  // namespace longhaul::storage
