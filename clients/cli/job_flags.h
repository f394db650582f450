// Flags of `submit` and `estimate`: one for every field of JobSpec, made from its descriptor, so that a new field has
// its flag the day it exists. Values go through the same conversion and checks as a job file.
#pragma once

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"

namespace longhaul::cli {

// What KEY=VALUE says, given any number of times, each key once. Errors name `flag`.
absl::StatusOr<std::map<std::string, std::string>> ParsePairs(const std::string& flag,
                                                              const std::vector<std::string>& pairs);

class JobFlags {
 public:
  // Registers the flags on `command`. This object must outlive the parse.
  void Register(CLI::App& command);
  // Writes the flags that were given into a job tree (job_file.h), over what it has.
  absl::Status Apply(YAML::Node& root) const;
  // The same error, each field at fault with its flag: "spec.hyperparameters.lora_rank (--lora-rank) is 0; ...". Fields
  // that no flag sets stay as they are.
  absl::Status NameFlags(const absl::Status& status) const;

 private:
  enum class Kind { kScalar, kList, kPairs, kFile };
  struct Flag {
    std::vector<std::string> path;  // {"spec", "hyperparameters", "lora_rank"}
    Kind kind = Kind::kScalar;
    std::string value;
    std::vector<std::string> values;
    CLI::Option* option = nullptr;
  };

  std::string NameOf(const std::string& field) const;
  Flag& Add(std::vector<std::string> path, Kind kind);
  void RegisterMessage(CLI::App& command, const google::protobuf::Descriptor* type,
                       const std::vector<std::string>& path, const std::string& prefix, const std::string& group);

  std::list<Flag> flags_;  // a list: CLI11 keeps pointers into its elements
};

}  // namespace longhaul::cli
