#include "clients/cli/render.h"

#include <google/protobuf/util/json_util.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cstdio>
#include <ostream>
#include <utility>

#include "base/format.h"
#include "nlohmann/json.hpp"

namespace longhaul::cli {
namespace {

using nlohmann::ordered_json;

std::string JsonText(const google::protobuf::Message& message, bool zeros) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = zeros;
  std::string text;
  // Fails only for an unknown Any type, and the API has none.
  (void)google::protobuf::util::MessageToJsonString(message, &text, options);
  return text;
}

// True where a plain scalar of this text would be read back as something else than text.
bool NeedsQuotes(const std::string& text) {
  if (text.empty() || text == "~") return true;
  static constexpr const char* kWords[] = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (std::find(std::begin(kWords), std::end(kWords), lower) != std::end(kWords)) return true;
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  return *end == '\0';
}

void Emit(const ordered_json& value, YAML::Emitter& out) {
  if (value.is_object()) {
    out << YAML::BeginMap;
    for (const auto& [key, child] : value.items()) {
      out << YAML::Key << key << YAML::Value;
      Emit(child, out);
    }
    out << YAML::EndMap;
  } else if (value.is_array()) {
    out << YAML::BeginSeq;
    for (const auto& child : value) Emit(child, out);
    out << YAML::EndSeq;
  } else if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    if (NeedsQuotes(text)) out << YAML::DoubleQuoted;
    out << text;
  } else {
    out << value.dump();
  }
}

// Code points, which is what a terminal shows as columns for the scripts that ids, names and numbers use.
size_t Width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string ToJson(const google::protobuf::Message& message, bool one_line) {
  const ordered_json value = ordered_json::parse(JsonText(message, true));
  return value.dump(one_line ? -1 : 2);
}

std::string ToYaml(const google::protobuf::Message& message) {
  YAML::Emitter out;
  Emit(ordered_json::parse(JsonText(message, false)), out);
  return out.c_str();
}

void PrintMessage(const google::protobuf::Message& message, OutputFormat format, std::ostream& out) {
  out << (format == OutputFormat::kYaml ? ToYaml(message) : ToJson(message, false)) << "\n";
}

void Table::Print(std::ostream& out) const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line += std::string(widths[i] - Width(row[i]) + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << "\n";
  }
}

int64_t ToMicros(const google::protobuf::Timestamp& time) { return time.seconds() * 1'000'000 + time.nanos() / 1000; }

std::string Ago(const google::protobuf::Timestamp& time, const Clock& clock) {
  if (time.seconds() == 0) return "-";
  return FormatDuration(static_cast<double>(std::max<int64_t>(clock.WallMicros() - ToMicros(time), 0)) / 1e6);
}

std::string Expected(const google::protobuf::Timestamp& time, const Clock& clock) {
  if (time.seconds() == 0) return "nobody can tell";
  const int64_t ahead = ToMicros(time) - clock.WallMicros();
  if (ahead <= 0) return "now";
  return "about " + FormatTimestamp(ToMicros(time)) + " (in " + FormatDuration(static_cast<double>(ahead) / 1e6) + ")";
}

std::string Loss(double loss) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3f", loss);
  return text;
}

std::string DescribeEvaluation(const v1::TrainingProgress& progress) {
  if (!progress.has_eval_loss()) return "";
  const bool earlier = progress.has_eval_step() && progress.eval_step() != progress.step();
  return Loss(progress.eval_loss()) + (earlier ? " after step " + std::to_string(progress.eval_step()) : "");
}

std::string DescribeProgress(const v1::TrainingProgress& progress) {
  char lr[32];
  std::snprintf(lr, sizeof(lr), "%.1e", progress.learning_rate());
  std::string text = "step " + std::to_string(progress.step()) + "/" + std::to_string(progress.total_steps()) +
                     "  loss " + Loss(progress.loss()) + "  lr " + lr + "  " +
                     FormatCount(static_cast<int64_t>(progress.tokens_per_second() + 0.5)) + " tok/s";
  if (progress.eta_seconds() > 0) text += "  eta " + FormatDuration(progress.eta_seconds());
  const bool device = progress.device_bytes_planned() > 0;
  const int64_t used = device ? progress.device_bytes_used() : progress.host_bytes_used();
  const int64_t planned = device ? progress.device_bytes_planned() : progress.host_bytes_planned();
  text += "  mem " + FormatBytes(used) + " of " + FormatBytes(planned);
  if (progress.has_eval_loss()) text += "  held-out " + DescribeEvaluation(progress);
  if (progress.skipped_updates() > 0) text += "  skipped " + std::to_string(progress.skipped_updates());
  return text;
}

std::string DescribeEvent(const v1::JobEvent& event) {
  std::string text = "[" + FormatTimestamp(ToMicros(event.time())).substr(11, 8) + "Z] ";
  switch (event.type()) {
    case v1::JOB_EVENT_TYPE_CHECKPOINT:
      return text + (event.message().empty() ? "checkpoint of step " + std::to_string(event.step()) : event.message());
    case v1::JOB_EVENT_TYPE_WARNING:
      text += "warning";
      break;
    case v1::JOB_EVENT_TYPE_ATTEMPT:
      if (event.message().rfind("attempt ", 0) == 0) return text + event.message();  // it names itself
      break;
    default:
      if (event.from_state() != v1::JOB_STATE_UNSPECIFIED && event.from_state() != event.state()) {
        text += v1::JobState_Name(event.from_state()) + " -> ";
      }
      text += v1::JobState_Name(event.state());
  }
  const bool names_itself = event.message().rfind("attempt ", 0) == 0;
  if (event.attempt() > 0 && !names_itself) text += "  attempt " + std::to_string(event.attempt());
  if (event.reason() != v1::REASON_UNSPECIFIED) text += "  " + v1::Reason_Name(event.reason());
  if (!event.message().empty()) text += "  " + event.message();
  return text;
}

}  // namespace longhaul::cli
