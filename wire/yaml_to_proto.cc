#include "wire/yaml_to_proto.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "base/format.h"
#include "nlohmann/json.hpp"
#include "wire/enum_names.h"

namespace longhaul::wire {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using nlohmann::json;

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

template <class Integer>
bool ParsesAs(const std::string& text) {
  Integer value{};
  const char* begin = text.data() + (!text.empty() && text[0] == '+' ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

class Converter {
 public:
  explicit Converter(std::string origin) : origin_(std::move(origin)) {}

  json Message(const YAML::Node& node, const Descriptor* type, const std::string& path) {
    json object = json::object();
    if (!node.IsMap()) {
      Fault(node, path, "must be a mapping of keys to values");
      return object;
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : std::string();
      const FieldDescriptor* field = FindField(type, key);
      const std::string field_path = path.empty() ? key : path + "." + key;
      if (field == nullptr) {
        Fault(entry.first, field_path, "is not a known key" + Hint(type, key));
      } else if (!seen.insert(field->name()).second) {
        Fault(entry.first, field_path, "appears more than once");
      } else if (!entry.second.IsNull()) {
        object[field->name()] = Field(entry.second, field, field_path);
      }
    }
    return object;
  }

  absl::Status status() const {
    if (faults_.empty()) return absl::OkStatus();
    const FieldViolation& first = faults_.front();
    std::string message =
        places_.front() + ": " + (first.field.empty() ? "the job" : first.field) + " " + first.description;
    if (faults_.size() > 1) message += " (and " + std::to_string(faults_.size() - 1) + " more)";
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", message, faults_);
  }

 private:
  static const FieldDescriptor* FindField(const Descriptor* type, const std::string& key) {
    if (const FieldDescriptor* field = type->FindFieldByName(key)) return field;
    for (int i = 0; i < type->field_count(); ++i) {
      if (type->field(i)->json_name() == key) return type->field(i);
    }
    return nullptr;
  }

  static std::string Hint(const Descriptor* type, const std::string& key) {
    std::vector<std::string> names;
    for (int i = 0; i < type->field_count(); ++i) names.push_back(type->field(i)->name());
    const std::string near = NearestWord(key, names.data(), names.data() + names.size());
    if (!near.empty()) return "; did you mean " + near + "?";
    std::string text = "; known are ";
    for (size_t i = 0; i < names.size(); ++i) text += (i == 0 ? "" : ", ") + names[i];
    return text;
  }

  void Fault(const YAML::Node& node, const std::string& path, const std::string& description) {
    const YAML::Mark mark = node.Mark();
    // A node that a flag made has no place in the file.
    places_.push_back(mark.is_null() ? "command line" : origin_ + ":" + std::to_string(mark.line + 1));
    faults_.push_back({path, description});
  }

  json Field(const YAML::Node& node, const FieldDescriptor* field, const std::string& path) {
    if (field->is_map()) return Map(node, path);
    if (!field->is_repeated()) return Value(node, field, path);
    json array = json::array();
    if (!node.IsSequence()) {
      Fault(node, path, "must be a list");
      return array;
    }
    for (size_t i = 0; i < node.size(); ++i) {
      array.push_back(Value(node[i], field, path + "[" + std::to_string(i) + "]"));
    }
    return array;
  }

  // Labels and metadata: the API has only maps of string to string.
  json Map(const YAML::Node& node, const std::string& path) {
    json object = json::object();
    if (!node.IsMap()) {
      Fault(node, path, "must be a mapping of keys to values");
      return object;
    }
    for (const auto& entry : node) {
      if (!entry.first.IsScalar() || !entry.second.IsScalar()) {
        Fault(entry.first, path, "keys and values must be text");
        continue;
      }
      const std::string& key = entry.first.Scalar();
      if (object.contains(key)) Fault(entry.first, path + "." + key, "appears more than once");
      object[key] = entry.second.Scalar();
    }
    return object;
  }

  json Value(const YAML::Node& node, const FieldDescriptor* field, const std::string& path) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) return Message(node, field->message_type(), path);
    if (!node.IsScalar()) {
      Fault(node, path, "must be a single value");
      return nullptr;
    }
    return Scalar(node, field, path);
  }

  json Scalar(const YAML::Node& node, const FieldDescriptor* field, const std::string& path) {
    const std::string& text = node.Scalar();
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        return Whole<int32_t>(node, path);
      case FieldDescriptor::CPPTYPE_INT64:
        return Whole<int64_t>(node, path);
      case FieldDescriptor::CPPTYPE_UINT64:
        return Whole<uint64_t>(node, path);
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        if (text.empty() || *end != '\0' || !std::isfinite(value)) {
          Fault(node, path, "is '" + text + "'; must be a finite number");
          return nullptr;
        }
        return value;
      }
      case FieldDescriptor::CPPTYPE_BOOL: {
        const std::string lower = Lower(text);
        if (lower == "true" || lower == "yes" || lower == "on") return true;
        if (lower == "false" || lower == "no" || lower == "off") return false;
        Fault(node, path, "is '" + text + "'; must be true or false");
        return nullptr;
      }
      case FieldDescriptor::CPPTYPE_ENUM:
        return Enum(node, field->enum_type(), path);
      default:
        return text;
    }
  }

  template <class T>
  json Whole(const YAML::Node& node, const std::string& path) {
    const std::string& text = node.Scalar();
    const bool negative_of_unsigned = std::is_unsigned_v<T> && text.rfind('-', 0) == 0;
    if (ParsesAs<T>(text) && !negative_of_unsigned) return text[0] == '+' ? text.substr(1) : text;
    Fault(node, path,
          "is '" + text + "'; must be a whole number in range, from " + std::to_string(std::numeric_limits<T>::min()) +
              " to " + std::to_string(std::numeric_limits<T>::max()));
    return nullptr;
  }

  json Enum(const YAML::Node& node, const EnumDescriptor* type, const std::string& path) {
    const auto number = ParseEnumName(*type, node.Scalar(), path);
    if (number.ok()) return type->FindValueByNumber(*number)->name();
    Fault(node, path, "is '" + node.Scalar() + "'; must be one of " + EnumNames(*type));
    return nullptr;
  }

  std::string origin_;
  std::vector<FieldViolation> faults_;
  std::vector<std::string> places_;  // of each fault: origin and line
};

}  // namespace

std::string AtMark(const std::string& origin, const YAML::Exception& error) {
  const std::string line = error.mark.is_null() ? "" : ":" + std::to_string(error.mark.line + 1);
  return origin + line + ": " + error.msg;
}

absl::Status YamlToProto(const YAML::Node& root, const std::string& origin, google::protobuf::Message* message) {
  json object;
  try {
    Converter converter(origin);
    object = converter.Message(root, message->GetDescriptor(), "");
    if (absl::Status status = converter.status(); !status.ok()) return status;
  } catch (const YAML::Exception& error) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_YAML", AtMark(origin, error));
  }
  // Replaces bytes that are not UTF-8; protobuf would refuse them with less to say.
  const std::string text = object.dump(-1, ' ', false, json::error_handler_t::replace);
  const auto status = google::protobuf::util::JsonStringToMessage(text, message);
  if (!status.ok()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD",
                     origin + ": " + std::string(status.message().data(), status.message().size()));
  }
  return absl::OkStatus();
}

}  // namespace longhaul::wire
