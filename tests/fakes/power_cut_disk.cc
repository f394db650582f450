#include "tests/fakes/power_cut_disk.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>

#include "base/check.h"
#include "base/random.h"

namespace longhaul {
namespace {

constexpr int64_t kSectorBytes = 512;

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

void Put(std::string* content, int64_t offset, std::string_view bytes) {
  const size_t end = static_cast<size_t>(offset) + bytes.size();
  if (content->size() < end) content->resize(end, '\0');
  content->replace(static_cast<size_t>(offset), bytes.size(), bytes);
}

// One independent draw after the other from a key.
class Draws {
 public:
  explicit Draws(uint64_t key) : key_(key) {}
  uint64_t Below(uint64_t n) { return CounterBits(key_, ++count_) % n; }

 private:
  const uint64_t key_;
  uint64_t count_ = 0;
};

}  // namespace

PowerCutDisk::PowerCutDisk(std::string root) : root_(std::move(root)) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root_)) {
    const std::string path = entry.path().string();
    if (path.ends_with("-shm")) continue;
    auto node = std::make_shared<Node>();
    node->folder = entry.is_directory();
    if (!node->folder) {
      std::ifstream in(path, std::ios::binary);
      node->now.assign(std::istreambuf_iterator<char>(in), {});
      node->certain = node->now;
    }
    names_[path] = node;
  }
  certain_names_ = names_;
  InstallDiskSeam(this);
}

PowerCutDisk::~PowerCutDisk() { InstallDiskSeam(nullptr); }

void PowerCutDisk::CutAfter(int64_t changes) {
  std::lock_guard lock(mutex_);
  cut_after_ = changes < 0 ? -1 : changes_ + changes;
}

void PowerCutDisk::FailNext(int count) {
  std::lock_guard lock(mutex_);
  fail_next_ = count;
}

bool PowerCutDisk::off() const {
  std::lock_guard lock(mutex_);
  return cut_after_ >= 0 && changes_ >= cut_after_;
}

int64_t PowerCutDisk::changes() const {
  std::lock_guard lock(mutex_);
  return changes_;
}

int PowerCutDisk::Before(const DiskChange& change) {
  std::lock_guard lock(mutex_);
  if (!change.path.starts_with(root_ + "/") && change.path != root_) return 0;
  if (cut_after_ >= 0 && changes_ >= cut_after_) return EIO;
  if (fail_next_ > 0) {
    --fail_next_;
    return ENOSPC;
  }
  ++changes_;
  Apply(change);
  return 0;
}

void PowerCutDisk::Set(std::map<std::string, NodePtr>* names, const NameChange& change) {
  for (const auto& [path, node] : change) {
    if (node != nullptr) {
      (*names)[path] = node;
    } else {
      names->erase(path);
    }
  }
}

void PowerCutDisk::NameChanged(const std::string& folder, NameChange change) {
  Set(&names_, change);
  pending_names_[folder].push_back(std::move(change));
}

void PowerCutDisk::Apply(const DiskChange& change) {
  const std::string path(change.path);
  const auto found = names_.find(path);
  switch (change.kind) {
    case DiskChange::Kind::kCreate:
    case DiskChange::Kind::kMakeDir: {
      if (found != names_.end()) return;
      auto node = std::make_shared<Node>();
      node->folder = change.kind == DiskChange::Kind::kMakeDir;
      return NameChanged(FolderOf(path), {{path, node}});
    }
    case DiskChange::Kind::kWrite:
      LH_CHECK(found != names_.end(), "a write to a file that nobody created: " + path);
      Put(&found->second->now, change.offset, change.bytes);
      found->second->pending.push_back({change.offset, std::string(change.bytes), false});
      return;
    case DiskChange::Kind::kTruncate:
      LH_CHECK(found != names_.end(), "truncated, but not created: " + path);
      found->second->now.resize(static_cast<size_t>(change.offset), '\0');
      found->second->pending.push_back({change.offset, "", true});
      return;
    case DiskChange::Kind::kRename: {
      LH_CHECK(found != names_.end(), "renamed, but not created: " + path);
      const std::string to(change.to);
      const NodePtr node = found->second;
      if (FolderOf(to) == FolderOf(path)) return NameChanged(FolderOf(to), {{to, node}, {path, nullptr}});
      NameChanged(FolderOf(to), {{to, node}});
      return NameChanged(FolderOf(path), {{path, nullptr}});
    }
    case DiskChange::Kind::kRemove: {
      NameChange gone;
      for (const auto& [name, node] : names_) {
        if (name == path || name.starts_with(path + "/")) gone.emplace_back(name, nullptr);
      }
      if (!gone.empty()) NameChanged(FolderOf(path), std::move(gone));
      return;
    }
    case DiskChange::Kind::kSyncFile:
      LH_CHECK(found != names_.end(), "synced, but not created: " + path);
      found->second->certain = found->second->now;
      found->second->pending.clear();
      return;
    case DiskChange::Kind::kSyncDir:
      for (const NameChange& name_change : pending_names_[path]) Set(&certain_names_, name_change);
      pending_names_.erase(path);
      return;
  }
}

std::string PowerCutDisk::Surviving(const Node& node, uint64_t seed) {
  std::string content = node.certain;
  if (node.pending.empty()) return content;
  Draws draws(seed);
  const uint64_t manner = draws.Below(4);  // nothing, all, a beginning with a torn end, any part
  const size_t whole = manner == 0 ? 0 : manner == 1 ? node.pending.size() : draws.Below(node.pending.size() + 1);
  for (size_t i = 0; i < node.pending.size(); ++i) {
    const Write& write = node.pending[i];
    const bool torn = manner == 3 ? draws.Below(2) == 0 : manner == 2 && i == whole;
    const bool kept = manner == 3 ? draws.Below(2) == 0 : i < whole;
    if (write.truncate) {
      if (kept) content.resize(static_cast<size_t>(write.offset), '\0');
    } else if (kept && !torn) {
      Put(&content, write.offset, write.bytes);
    } else if (torn) {
      // Sector by sector, by the file's own sectors; a file that grew may have the size without the bytes.
      const int64_t end = write.offset + static_cast<int64_t>(write.bytes.size());
      for (int64_t at = write.offset; at < end;) {
        const int64_t next = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
        if (draws.Below(2) == 0) {
          Put(&content, at,
              std::string_view(write.bytes)
                  .substr(static_cast<size_t>(at - write.offset), static_cast<size_t>(next - at)));
        }
        at = next;
      }
    }
  }
  return content;
}

void PowerCutDisk::ProcessDied(const std::string& folder) {
  std::lock_guard lock(mutex_);
  const auto moved = [&](const std::string& path) { return folder + path.substr(root_.size()); };
  const auto moved_names = [&](const std::map<std::string, NodePtr>& names) {
    std::map<std::string, NodePtr> out;
    for (const auto& [path, node] : names) out[moved(path)] = node;
    return out;
  };
  std::filesystem::create_directories(folder);
  for (const auto& [path, node] : names_) {
    if (node->folder) {
      std::filesystem::create_directories(moved(path));
    } else {
      std::ofstream(moved(path), std::ios::binary) << node->now;
    }
  }
  std::map<std::string, std::vector<NameChange>> pending;
  for (const auto& [path, changes] : pending_names_) {
    for (const NameChange& change : changes) {
      NameChange renamed;
      for (const auto& [name, node] : change) renamed.emplace_back(moved(name), node);
      pending[moved(path)].push_back(std::move(renamed));
    }
  }
  names_ = moved_names(names_);
  certain_names_ = moved_names(certain_names_);
  pending_names_ = std::move(pending);
  root_ = folder;
}

void PowerCutDisk::Restore(const std::string& folder, uint64_t seed) const {
  std::lock_guard lock(mutex_);
  std::map<std::string, NodePtr> names = certain_names_;
  Draws draws(seed);
  for (const auto& [path, changes] : pending_names_) {
    const size_t kept = draws.Below(changes.size() + 1);
    for (size_t i = 0; i < kept; ++i) Set(&names, changes[i]);
  }
  std::filesystem::create_directories(folder);
  std::set<std::string> folders = {root_};  // in order of path: a parent comes before what is in it
  uint64_t number = 0;
  for (const auto& [path, node] : names) {
    ++number;
    if (!folders.contains(FolderOf(path))) continue;  // its folder was lost
    const std::string target = folder + path.substr(root_.size());
    if (node->folder) {
      folders.insert(path);
      std::filesystem::create_directories(target);
    } else {
      std::ofstream(target, std::ios::binary) << Surviving(*node, CounterBits(seed, (uint64_t{1} << 40) + number));
    }
  }
}

}  // namespace longhaul
