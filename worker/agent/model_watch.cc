#include "worker/agent/model_watch.h"

#include <algorithm>
#include <utility>

#include "base/env.h"
#include "base/status_macros.h"

namespace longhaul::agent {
namespace {

std::vector<std::string> SortedNames(const std::string& dir) {
  std::vector<std::string> names = ListDir(dir).value_or(std::vector<std::string>());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

std::string ModelStamp(const std::string& path) {
  if (!IsDirectory(path)) return FileStamp(path).value_or("");
  std::string lines;
  for (const std::string& name : SortedNames(path)) {
    const std::string file = JoinPath(path, name);
    if (!IsDirectory(file)) lines += name + '\0' + FileStamp(file).value_or("gone") + '\n';
  }
  return lines;
}

ModelWatch::ModelWatch(std::vector<std::string> model_dirs, Read read)
    : model_dirs_(std::move(model_dirs)), read_(std::move(read)), read_stamp_(Stamp()), seen_stamp_(read_stamp_) {}

// Of models that lie in the folders themselves, and of those in folders of their own.
std::string ModelWatch::Stamp() const {
  std::string stamp;
  for (const std::string& dir : model_dirs_) {
    stamp += dir + '\0' + ModelStamp(dir) + '\n';
    if (!IsDirectory(dir)) continue;
    for (const std::string& name : SortedNames(dir)) {
      const std::string below = JoinPath(dir, name);
      if (IsDirectory(below)) stamp += below + '\0' + ModelStamp(below) + '\n';
    }
  }
  return stamp;
}

absl::StatusOr<std::optional<ModelOffer>> ModelWatch::Look(bool anyway) {
  const std::string stamp = Stamp();
  const bool settled = stamp == seen_stamp_;
  seen_stamp_ = stamp;
  if ((stamp == read_stamp_ && !anyway) || !settled) return std::optional<ModelOffer>();
  LH_ASSIGN_OR_RETURN(ModelOffer offer, read_());
  read_stamp_ = stamp;  // what has changed meanwhile has another
  return std::optional<ModelOffer>(std::move(offer));
}

}  // namespace longhaul::agent
