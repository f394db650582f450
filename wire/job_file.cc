#include "wire/job_file.h"

#include <filesystem>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "wire/yaml_to_proto.h"

namespace longhaul::wire {
namespace {

bool IsField(const google::protobuf::Descriptor* type, const std::string& name) {
  return type->FindFieldByName(name) != nullptr;
}

// `longhaul get -o yaml` prints a job that can be submitted again: what only a stored job has, its id, state and
// result, says nothing of a new one.
YAML::Node WithoutOutputs(const YAML::Node& root) {
  const YAML::Node id = root["id"];
  if (!id || !id.IsScalar() || id.Scalar().rfind("ftjob-", 0) != 0) return root;  // else a mistyped key would be lost
  YAML::Node result(YAML::NodeType::Map);
  for (const auto& entry : root) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : std::string();
    const bool output =
        IsField(v1::Job::descriptor(), key) && !IsField(v1::CreateFineTuneJobRequest::descriptor(), key);
    if (!output) result.force_insert(entry.first, entry.second);
  }
  return result;
}

// Fields of JobSpec at the top move under `spec`, unless the file has a `spec` of its own.
YAML::Node UnderSpec(const YAML::Node& root) {
  if (root["spec"]) return root;
  YAML::Node result(YAML::NodeType::Map);
  YAML::Node spec(YAML::NodeType::Map);
  for (const auto& entry : root) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : std::string();
    const bool in_spec = IsField(v1::JobSpec::descriptor(), key);
    // force_insert keeps the key's node, and with it the line that an error names.
    (in_spec ? spec : result).force_insert(entry.first, entry.second);
  }
  result.force_insert("spec", spec);
  return result;
}

void ResolveLocalFile(YAML::Node dataset, const std::string& base_dir) {
  if (!dataset || !dataset.IsMap() || dataset["sha256"]) return;
  YAML::Node file = dataset["file_name"];
  if (!file || !file.IsScalar() || file.Scalar().empty()) return;
  const std::filesystem::path path(file.Scalar());
  if (path.is_relative()) file = (std::filesystem::path(base_dir) / path).lexically_normal().string();
}

}  // namespace

absl::StatusOr<YAML::Node> ReadJobFile(const std::string& path) {
  auto text = ReadFile(path, limits::kMaxJobFileBytes);
  if (!text.ok()) return Annotate(text.status(), "job file");
  try {
    const YAML::Node parsed = YAML::Load(*text);
    if (!parsed.IsMap()) {
      return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_YAML",
                       path + ": must be a mapping such as `model: NAME`");
    }
    YAML::Node root = UnderSpec(WithoutOutputs(parsed));
    const YAML::Node spec = std::as_const(root)["spec"];
    if (spec.IsMap()) {
      const std::string base_dir = std::filesystem::path(path).parent_path().string();
      for (const char* name : {"dataset", "eval_dataset"}) {
        if (spec[name]) ResolveLocalFile(spec[name], base_dir);
      }
    }
    return root;
  } catch (const YAML::Exception& error) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_YAML", AtMark(path, error));
  }
}

absl::StatusOr<v1::CreateFineTuneJobRequest> JobRequestFromYaml(const YAML::Node& root, const std::string& origin) {
  v1::CreateFineTuneJobRequest request;
  LH_RETURN_IF_ERROR(YamlToProto(root, origin, &request));
  return request;
}

}  // namespace longhaul::wire
