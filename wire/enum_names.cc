#include "wire/enum_names.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "base/error.h"
#include "base/format.h"

namespace longhaul::wire {
namespace {

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

// "LearningRateSchedule" -> "LEARNING_RATE_SCHEDULE_".
std::string PrefixOf(const google::protobuf::EnumDescriptor& type) {
  std::string prefix;
  for (const char c : type.name()) {
    if (std::isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix.push_back('_');
    prefix.push_back(static_cast<char>(std::toupper(static_cast<unsigned char>(c))));
  }
  return prefix + "_";
}

std::string ShortName(const google::protobuf::EnumDescriptor& type, const std::string& name) {
  std::string prefix = PrefixOf(type);
  // TrainerExitReason's values begin with TRAINER_EXIT_.
  if (name.rfind(prefix, 0) != 0) prefix = "TRAINER_EXIT_";
  return Lower(name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name);
}

std::vector<std::string> Names(const google::protobuf::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) names.push_back(ShortName(type, type.value(i)->name()));
  }
  return names;
}

}  // namespace

std::string EnumName(const google::protobuf::EnumDescriptor& type, int number) {
  if (number == 0) return "";
  const auto* value = type.FindValueByNumber(number);
  return value == nullptr ? "unknown (" + std::to_string(number) + ")" : ShortName(type, value->name());
}

absl::StatusOr<int> ParseEnumName(const google::protobuf::EnumDescriptor& type, std::string_view text,
                                  const std::string& field) {
  const std::string wanted = Lower(std::string(text));
  for (int i = 0; i < type.value_count(); ++i) {
    const auto* value = type.value(i);
    if (value->number() == 0) continue;
    if (wanted == ShortName(type, value->name()) || wanted == Lower(value->name())) return value->number();
  }
  const std::vector<std::string> names = Names(type);
  const std::string near = NearestWord(wanted, names.data(), names.data() + names.size());
  return InvalidField(field, "is \"" + std::string(text) + "\"; " +
                                 (near.empty() ? "" : "did you mean \"" + near + "\"? ") + "one of " + EnumNames(type));
}

std::string EnumNames(const google::protobuf::EnumDescriptor& type) {
  std::string all;
  for (const std::string& name : Names(type)) all += (all.empty() ? "" : ", ") + name;
  return all;
}

}  // namespace longhaul::wire
