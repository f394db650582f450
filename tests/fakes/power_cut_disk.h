// A disk that can lose power, behind base/disk_seam.h. Files below `root` are the real ones; beside them this keeps
// what the platter has for certain. Writes are certain from the file's sync on, names (created, renamed, removed) from
// their folder's; nothing else is promised. When the power goes, Restore draws by a seed what of the rest had reached
// the platter: nothing, all, a beginning, or any part of a file's writes, the sectors of one write apart; of a folder's
// changes a beginning. So it is harsher than a journaling file system, and never kinder than POSIX.
// Thread-safe; one at a time in a process.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/disk_seam.h"

namespace longhaul {

class PowerCutDisk final : public DiskSeam {
 public:
  // Installs itself. What is below `root` now is on the platter.
  explicit PowerCutDisk(std::string root);
  ~PowerCutDisk() override;  // takes itself out
  PowerCutDisk(const PowerCutDisk&) = delete;
  PowerCutDisk& operator=(const PowerCutDisk&) = delete;

  int Before(const DiskChange& change) override;

  // The power goes after `changes` more changes: each later one fails with EIO. Negative: never.
  void CutAfter(int64_t changes);
  // The next `count` changes fail, as on a full disk.
  void FailNext(int count);
  bool off() const;
  int64_t changes() const;  // seen below root, while on

  // What the platter has when the power comes back, as files in the new folder `folder`.
  void Restore(const std::string& folder, uint64_t seed) const;
  // The process died, the machine did not: what was written is there, and what was not certain still is not. The files
  // go on in the new folder `folder`; what the old process's remains do below the old root is not seen any more.
  void ProcessDied(const std::string& folder);

 private:
  struct Write {
    int64_t offset = 0;
    std::string bytes;
    bool truncate = false;  // to offset
  };
  struct Node {
    bool folder = false;
    std::string now;
    std::string certain;
    std::vector<Write> pending;  // since the last sync, in order
  };
  using NodePtr = std::shared_ptr<Node>;
  using NameChange = std::vector<std::pair<std::string, NodePtr>>;  // set together; null removes

  void Apply(const DiskChange& change);
  void NameChanged(const std::string& folder, NameChange change);
  static void Set(std::map<std::string, NodePtr>* names, const NameChange& change);
  static std::string Surviving(const Node& node, uint64_t seed);

  std::string root_;          // constant but for ProcessDied
  mutable std::mutex mutex_;  // guards the rest
  std::map<std::string, NodePtr> names_;
  std::map<std::string, NodePtr> certain_names_;
  std::map<std::string, std::vector<NameChange>> pending_names_;  // by folder, since its last sync
  int64_t changes_ = 0;
  int64_t cut_after_ = -1;
  int fail_next_ = 0;
};

}  // namespace longhaul
