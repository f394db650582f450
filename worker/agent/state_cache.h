// A small file of JSON in the state folder: what took long to find out. Forgotten where it cannot be read, for
// everything in it can be found again. Not thread-safe.
#pragma once

#include <set>
#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace longhaul::agent {

class StateCache {
 public:
  explicit StateCache(std::string path);

  // Null where it is not known. Valid until the next Put.
  const nlohmann::json* Find(const std::string& key);
  void Put(const std::string& key, nlohmann::json value);
  // Writes all that is known, also what nobody has asked for yet; not at all where the file has it.
  absl::Status SaveAll();
  // Writes what was asked for or put this time, and nothing else; not at all where that is what the file has.
  absl::Status Save();

 private:
  std::string path_;
  nlohmann::json values_;
  std::set<std::string> used_;
  bool changed_ = false;  // since it was read or written
};

}  // namespace longhaul::agent
