// The models under the model folders, looked at again while the agent runs: one that was added, replaced or removed is
// told to the scheduler without a restart. A look costs a few stats; models are read only once their files have been
// the same for two looks in a row, so that a file that is being copied is left alone.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/agent/local_model.h"

namespace longhaul::agent {

// Names, sizes, times and inodes of a model's files: of a file its own, of a folder those of the files directly in it.
// "" where there is none.
std::string ModelStamp(const std::string& path);

// One thread at a time.
class ModelWatch {
 public:
  using Read = std::function<absl::StatusOr<ModelOffer>()>;

  // What is there now counts as read: make it before the models are first read.
  ModelWatch(std::vector<std::string> model_dirs, Read read);

  // None where the models are those that were last read, or their files still change. `anyway`: what has settled is
  // read though it is the same. Errors are `read`'s, and the next look reads again.
  absl::StatusOr<std::optional<ModelOffer>> Look(bool anyway = false);

 private:
  std::string Stamp() const;

  const std::vector<std::string> model_dirs_;
  const Read read_;
  std::string read_stamp_;
  std::string seen_stamp_;  // of the last look
};

}  // namespace longhaul::agent
