#include "model/json_fields.h"

#include <cmath>
#include <utility>

#include "base/error.h"

namespace longhaul {

JsonFields::JsonFields(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (!object_.is_object()) Fail("is not a JSON object");
}

void JsonFields::Fail(const std::string& message) {
  if (status_.ok()) {
    status_ = MakeError(absl::StatusCode::kInvalidArgument, "INVALID_JSON", where_ + ": " + message);
  }
}

const nlohmann::json* JsonFields::Find(const char* key) const {
  if (!object_.is_object()) return nullptr;
  auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json* JsonFields::Need(const char* key) {
  if (!status_.ok()) return nullptr;
  const nlohmann::json* value = Find(key);
  if (value == nullptr) Fail(std::string("\"") + key + "\" is missing");
  return value;
}

void JsonFields::Int(const char* key, int64_t min, int64_t max, int64_t* out) {
  const nlohmann::json* value = Need(key);
  if (value == nullptr) return;
  const std::string range = "must be a whole number from " + std::to_string(min) + " to " + std::to_string(max);
  int64_t number = 0;
  if (value->is_number_unsigned()) {
    const uint64_t raw = value->get<uint64_t>();
    if (raw > static_cast<uint64_t>(INT64_MAX)) return Fail(std::string("\"") + key + "\" " + range);
    number = static_cast<int64_t>(raw);
  } else if (value->is_number_integer()) {
    number = value->get<int64_t>();
  } else if (value->is_number_float() && std::abs(value->get<double>()) < 9e15 &&
             value->get<double>() == std::floor(value->get<double>())) {
    number = static_cast<int64_t>(value->get<double>());
  } else {
    return Fail(std::string("\"") + key + "\" " + range);
  }
  if (number < min || number > max) {
    return Fail(std::string("\"") + key + "\" is " + std::to_string(number) + "; " + range);
  }
  *out = number;
}

void JsonFields::Int(const char* key, int64_t min, int64_t max, int* out) {
  int64_t wide = *out;
  Int(key, min, max, &wide);
  if (status_.ok()) *out = static_cast<int>(wide);
}

void JsonFields::Double(const char* key, double min, double max, double* out) {
  const nlohmann::json* value = Need(key);
  if (value == nullptr) return;
  if (!value->is_number()) return Fail(std::string("\"") + key + "\" must be a number");
  const double number = value->get<double>();
  if (!(number >= min && number <= max)) {  // also refuses NaN
    return Fail(std::string("\"") + key + "\" is " + std::to_string(number) + "; must be from " + std::to_string(min) +
                " to " + std::to_string(max));
  }
  *out = number;
}

void JsonFields::Doubles(const char* key, size_t max_elements, double min, double max, std::vector<double>* out) {
  const nlohmann::json* array = RequiredArray(key, max_elements);
  if (array == nullptr) return;
  out->clear();
  for (const nlohmann::json& value : *array) {
    const std::string element = std::string("\"") + key + "\"[" + std::to_string(out->size()) + "]";
    if (!value.is_number()) return Fail(element + " must be a number");  // not repeated: it may be of any size
    const double number = value.get<double>();
    if (!(number >= min && number <= max)) {
      return Fail(element + " is " + std::to_string(number) + "; must be from " + std::to_string(min) + " to " +
                  std::to_string(max));
    }
    out->push_back(number);
  }
}

void JsonFields::Bool(const char* key, bool* out) {
  const nlohmann::json* value = Need(key);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(std::string("\"") + key + "\" must be true or false");
  *out = value->get<bool>();
}

void JsonFields::String(const char* key, size_t max_bytes, std::string* out) {
  const nlohmann::json* value = Need(key);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(std::string("\"") + key + "\" must be a string");
  const std::string& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    return Fail(std::string("\"") + key + "\" has " + std::to_string(text.size()) + " bytes; at most " +
                std::to_string(max_bytes));
  }
  *out = text;
}

void JsonFields::Choice(const char* key, const std::vector<std::string>& names, int* out) {
  std::string text;
  String(key, 256, &text);
  if (!status_.ok()) return;
  std::string all;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == text) {
      *out = static_cast<int>(i);
      return;
    }
    all += (all.empty() ? "" : ", ") + names[i];
  }
  Fail(std::string("\"") + key + "\" is \"" + text + "\"; must be one of " + all);
}

void JsonFields::OptionalInt(const char* key, int64_t min, int64_t max, int64_t* out) {
  if (Find(key) != nullptr) Int(key, min, max, out);
}
void JsonFields::OptionalDouble(const char* key, double min, double max, double* out) {
  if (Find(key) != nullptr) Double(key, min, max, out);
}
void JsonFields::OptionalBool(const char* key, bool* out) {
  if (Find(key) != nullptr) Bool(key, out);
}

const nlohmann::json* JsonFields::RequiredObject(const char* key) {
  const nlohmann::json* value = Need(key);
  if (value != nullptr && !value->is_object()) {
    Fail(std::string("\"") + key + "\" must be an object");
    return nullptr;
  }
  return value;
}

const nlohmann::json* JsonFields::RequiredArray(const char* key, size_t max_elements) {
  const nlohmann::json* value = Need(key);
  if (value == nullptr) return nullptr;
  const std::string range = "must be an array of at most " + std::to_string(max_elements) + " elements";
  if (!value->is_array()) {
    Fail(std::string("\"") + key + "\" " + range);
    return nullptr;
  }
  if (value->size() > max_elements) {
    Fail(std::string("\"") + key + "\" has " + std::to_string(value->size()) + " elements; " + range);
    return nullptr;
  }
  return value;
}

}  // namespace longhaul
