// What tests/golden/kept_v<N>.db holds: a job in every state and a row of every kind, so that a database written by an
// older build can be compared value by value. make_kept_state writes the file of the schema that it was built with; run
// it once when a schema is released, and keep the file.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/core/store.h"

namespace longhaul::storage {

struct KeptJob {
  server::Job job;
  std::vector<server::JobEvent> events;
  std::vector<server::Attempt> attempts;
  std::vector<server::Checkpoint> checkpoints;
  std::vector<server::MetricPoint> metrics;
};

struct KeptState {
  std::vector<KeptJob> jobs;
  std::vector<server::RequestKey> keys;
  std::vector<server::Worker> workers;
  std::vector<server::BlobRef> blobs;  // their rows; the last one is referred to by nobody
  std::vector<std::string> contents;   // of the blobs, each once
};

inline constexpr int64_t kKeptWallMicros = 1'700'000'000'000'000;

KeptState MakeKeptState();
absl::Status WriteKeptState(const KeptState& state, server::Store* store);

}  // namespace longhaul::storage
