// The models under the model folders, looked at again while the agent runs: one that was added, replaced or removed is
// told to the scheduler without a restart. A look costs a few stats. A model is read only once its own files have been
// the same for two looks in a row, so that one that is being copied is left alone, and the others do not wait for it.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/agent/local_model.h"

namespace longhaul::agent {

// Names, sizes, times and inodes of a model's files: of a file its own, of a folder those of all files directly in it,
// those beside the model as well. "" where there is none.
std::string ModelStamp(const std::string& path);

// One thread at a time.
class ModelWatch {
 public:
  // `changing`: paths of models that are still written to, not to be read. `unread` gets those that the next look is to
  // read.
  using Read =
      std::function<absl::StatusOr<ModelOffer>(const std::set<std::string>& changing, std::set<std::string>* unread)>;

  // What is there now counts as read: make it before the models are first read, and tell it what was not.
  ModelWatch(std::vector<std::string> model_dirs, Read read);
  void Unread(const std::set<std::string>& paths);

  // None where no model has settled as another one than was last read. `anyway`: read though none has. Errors are
  // `read`'s, and the next look reads again.
  absl::StatusOr<std::optional<ModelOffer>> Look(bool anyway = false);

 private:
  using Stamps = std::map<std::string, std::string>;  // by path, of all that may be a model
  Stamps Take() const;

  const std::vector<std::string> model_dirs_;
  const Read read_;
  Stamps read_stamps_;  // without those that were changing or left unread
  Stamps seen_stamps_;  // of the last look
};

}  // namespace longhaul::agent
