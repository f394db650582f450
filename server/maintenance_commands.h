// `longhauld backup DEST` and `longhauld check`: what an operator does with a state folder, whether a scheduler runs on
// it or not (storage/backup.h, storage/check_state.h).
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

#include "CLI/CLI.hpp"

namespace longhaul::server {

class MaintenanceCommands {
 public:
  // Adds the commands. A parse leaves the chosen one here. `state_dir`: set by then; must outlive it.
  MaintenanceCommands(CLI::App* app, const std::string* state_dir);

  bool chosen() const { return run_ != nullptr; }
  // REQUIRES: chosen. The exit code: 0 in order, 1 where it found or met a problem.
  int Run(std::ostream& out, std::ostream& err) const { return run_(out, err); }

 private:
  const std::string* const state_dir_;
  std::string destination_;
  bool hash_blobs_ = false;
  std::function<int(std::ostream&, std::ostream&)> run_;
};

}  // namespace longhaul::server
