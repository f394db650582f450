// `longhauld token create|list|revoke|confirm` and `longhauld audit`: what an administrator does on the state folder
// itself, whether a scheduler runs on it or not. Who may write the folder may do it.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"

namespace longhaul::server {

class AccessCommands {
 public:
  // Adds the commands. A parse leaves the chosen one here. `state_dir`: set by then; must outlive it.
  AccessCommands(CLI::App* app, const std::string* state_dir);

  bool chosen() const { return run_ != nullptr; }
  // REQUIRES: chosen. Data goes to `out`, notes to `err`.
  absl::Status Run(const Clock& clock, std::ostream& out, std::ostream& err) const { return run_(clock, out, err); }

 private:
  void AddTokenCommands(CLI::App* app);
  void AddAuditCommand(CLI::App* app);

  const std::string* const state_dir_;
  std::string name_;
  std::string scopes_;
  std::string project_;
  std::string worker_id_;
  std::string lifetime_;
  std::string id_;
  std::vector<std::string> ids_;
  bool all_ = false;
  bool json_ = false;
  int64_t after_number_ = 0;
  int limit_ = 0;
  std::function<absl::Status(const Clock&, std::ostream&, std::ostream&)> run_;
};

// "90d", "12h", "30m", "45s": microseconds; "never": 0. INVALID_ARGUMENT names --expires-in.
absl::StatusOr<int64_t> ParseLifetime(const std::string& text);

}  // namespace longhaul::server
