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
    : model_dirs_(std::move(model_dirs)), read_(std::move(read)), read_stamps_(Take()), seen_stamps_(read_stamps_) {}

void ModelWatch::Unread(const std::set<std::string>& paths) {
  for (const std::string& path : paths) read_stamps_.erase(path);
}

// A model folder may be a model itself, or have models as files and folders.
ModelWatch::Stamps ModelWatch::Take() const {
  Stamps stamps;
  for (const std::string& dir : model_dirs_) {
    stamps[dir] = ModelStamp(dir);
    if (!IsDirectory(dir)) continue;
    for (const std::string& name : SortedNames(dir)) {
      const std::string path = JoinPath(dir, name);
      stamps[path] = ModelStamp(path);
    }
  }
  return stamps;
}

absl::StatusOr<std::optional<ModelOffer>> ModelWatch::Look(bool anyway) {
  Stamps now = Take();
  std::set<std::string> changing;
  bool changed = anyway;
  const auto stamp_in = [](const Stamps& stamps, const std::string& path) {
    const auto found = stamps.find(path);
    return found == stamps.end() ? std::string() : found->second;  // one that is gone, or not there yet
  };
  const auto compare = [&](const std::string& path) {
    const std::string stamp = stamp_in(now, path);
    if (stamp != stamp_in(seen_stamps_, path)) {
      changing.insert(path);
    } else if (stamp != stamp_in(read_stamps_, path)) {
      changed = true;
    }
  };
  for (const auto& [path, stamp] : now) compare(path);
  for (const auto& [path, stamp] : seen_stamps_) compare(path);
  for (const auto& [path, stamp] : read_stamps_) compare(path);
  seen_stamps_ = now;
  if (!changed) return std::optional<ModelOffer>();
  std::set<std::string> unread;
  LH_ASSIGN_OR_RETURN(ModelOffer offer, read_(changing, &unread));
  read_stamps_ = std::move(now);  // what has changed meanwhile has another
  Unread(changing);
  Unread(unread);
  return std::optional<ModelOffer>(std::move(offer));
}

}  // namespace longhaul::agent
