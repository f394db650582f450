// Reads the fields of one JSON object with a range for each. The first fault is kept; later reads are no-ops, so a
// reader is a list of fields and one check at the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace longhaul {

class JsonFields {
 public:
  // `where` names the object in messages: "config.json", "memory plan: region 3". Keeps a reference to `object`.
  JsonFields(const nlohmann::json& object, std::string where);

  // Required fields. A whole number written as 1.0 is accepted; out of [min, max] is an error naming both.
  void Int(const char* key, int64_t min, int64_t max, int64_t* out);
  void Int(const char* key, int64_t min, int64_t max, int* out);
  void Double(const char* key, double min, double max, double* out);
  // An array of at most so many of them.
  void Doubles(const char* key, size_t max_elements, double min, double max, std::vector<double>* out);
  void Bool(const char* key, bool* out);
  void String(const char* key, size_t max_bytes, std::string* out);
  // One of `names`; *out is its index.
  void Choice(const char* key, const std::vector<std::string>& names, int* out);
  // Absent and null leave *out as it is.
  void OptionalInt(const char* key, int64_t min, int64_t max, int64_t* out);
  void OptionalDouble(const char* key, double min, double max, double* out);
  void OptionalBool(const char* key, bool* out);

  // The member object or array; null where it is absent. Required* records an error where it is absent or another type.
  const nlohmann::json* Find(const char* key) const;
  const nlohmann::json* RequiredObject(const char* key);
  const nlohmann::json* RequiredArray(const char* key, size_t max_elements);

  void Fail(const std::string& message);
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json* Need(const char* key);
  const nlohmann::json& object_;
  std::string where_;
  absl::Status status_;
};

}  // namespace longhaul
