#include "worker/job_yaml.h"

#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "nlohmann/json.hpp"
#include "wire/enum_names.h"
#include "yaml-cpp/yaml.h"

namespace longhaul::trainer {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using nlohmann::json;

constexpr int64_t kMaxJobFileBytes = 1 << 20;
constexpr int kMaxDepth = 16;

// YAML has no types, the message has: so each scalar becomes what its field wants.
class Converter {
 public:
  explicit Converter(std::string file) : file_(std::move(file)) {}

  absl::StatusOr<json> Message(const YAML::Node& node, const Descriptor& type, const std::string& path, int depth = 0) {
    if (!node.IsMap() || depth > kMaxDepth) return Fault(node, path, "must be a mapping of fields");
    json out = json::object();
    for (const auto& entry : node) {
      const std::string key = entry.first.as<std::string>("");
      const FieldDescriptor* field = type.FindFieldByName(key);
      if (field == nullptr) return Unknown(entry.first, type, path, key);
      if (entry.second.IsNull()) continue;
      const std::string at = path.empty() ? key : path + "." + key;
      LH_ASSIGN_OR_RETURN(out[key], Field(entry.second, *field, at, depth));
    }
    return out;
  }

 private:
  absl::Status Fault(const YAML::Node& node, const std::string& path, const std::string& what) const {
    const std::string line = node.Mark().line >= 0 ? " line " + std::to_string(node.Mark().line + 1) : "";
    return Annotate(InvalidField(path.empty() ? "the job" : path, what), file_ + line);
  }

  absl::Status Unknown(const YAML::Node& node, const Descriptor& type, const std::string& path,
                       const std::string& key) const {
    std::vector<std::string> names;
    for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
    const std::string near = NearestWord(key, names.data(), names.data() + names.size());
    return Fault(node, path.empty() ? key : path + "." + key,
                 "is no field" + (near.empty() ? std::string() : "; did you mean \"" + near + "\"?"));
  }

  absl::StatusOr<json> Field(const YAML::Node& node, const FieldDescriptor& field, const std::string& path, int depth) {
    if (field.is_map()) {
      json out = json::object();
      if (!node.IsMap()) return Fault(node, path, "must be a mapping");
      for (const auto& entry : node) out[entry.first.as<std::string>("")] = entry.second.as<std::string>("");
      return out;
    }
    if (!field.is_repeated()) return Value(node, field, path, depth);
    if (!node.IsSequence()) return Fault(node, path, "must be a list");
    json out = json::array();
    for (size_t i = 0; i < node.size(); ++i) {
      LH_ASSIGN_OR_RETURN(json value, Value(node[i], field, path + "[" + std::to_string(i) + "]", depth));
      out.push_back(std::move(value));
    }
    return out;
  }

  absl::StatusOr<json> Value(const YAML::Node& node, const FieldDescriptor& field, const std::string& path, int depth) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
      return Message(node, *field.message_type(), path, depth + 1);
    if (!node.IsScalar()) return Fault(node, path, "must be a single value");
    const std::string text = node.Scalar();
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL: {
        bool value = false;
        if (!YAML::convert<bool>::decode(node, value))
          return Fault(node, path, "is \"" + text + "\"; must be true or false");
        return json(value);
      }
      case FieldDescriptor::CPPTYPE_ENUM: {
        auto number = wire::ParseEnumName(*field.enum_type(), text, path);
        if (!number.ok()) return Annotate(number.status(), file_);
        return json(*number);
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        double value = 0;
        if (!YAML::convert<double>::decode(node, value))
          return Fault(node, path, "is \"" + text + "\"; must be a number");
        return json(text);
      }
      case FieldDescriptor::CPPTYPE_STRING:
        return json(text);
      default: {
        int64_t value = 0;
        uint64_t large = 0;
        if (!YAML::convert<int64_t>::decode(node, value) && !YAML::convert<uint64_t>::decode(node, large)) {
          return Fault(node, path, "is \"" + text + "\"; must be a whole number");
        }
        return json(text);  // proto JSON takes numbers as strings, and checks their range
      }
    }
  }

  std::string file_;
};

void MakeRelative(const std::string& job_file, v1::Dataset* dataset) {
  const std::string name = dataset->file_name();
  const size_t slash = job_file.rfind('/');
  if (!dataset->sha256().empty() || name.empty() || name.front() == '/' || slash == std::string::npos) return;
  dataset->set_file_name(job_file.substr(0, slash + 1) + name);
}

}  // namespace

absl::StatusOr<v1::JobSpec> ReadJobYaml(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxJobFileBytes));
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_JOB_FILE",
                     path + " line " + std::to_string(error.mark.line + 1) + ": " + error.msg);
  }
  Converter converter(path);
  v1::CreateFineTuneJobRequest request;
  const bool has_spec = root.IsMap() && root["spec"];
  const Descriptor& type = has_spec ? *request.GetDescriptor() : *v1::JobSpec::descriptor();
  LH_ASSIGN_OR_RETURN(const json value, converter.Message(root, type, ""));
  google::protobuf::Message* target = &request;
  if (!has_spec) target = request.mutable_spec();
  const auto parsed = google::protobuf::util::JsonStringToMessage(value.dump(), target);
  if (!parsed.ok()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_JOB_FILE", path + ": " + parsed.ToString());
  }
  v1::JobSpec spec = request.spec();
  if (spec.has_dataset()) MakeRelative(path, spec.mutable_dataset());
  if (spec.has_eval_dataset()) MakeRelative(path, spec.mutable_eval_dataset());
  return spec;
}

}  // namespace longhaul::trainer
