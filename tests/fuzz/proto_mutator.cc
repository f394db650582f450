#include "tests/fuzz/proto_mutator.h"

#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "google/protobuf/descriptor.h"

namespace longhaul {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Every message in the message, itself first.
void Collect(Message* message, std::vector<Message*>* out) {
  out->push_back(message);
  const Reflection* reflection = message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) continue;
    if (!field->is_repeated()) {
      Collect(reflection->MutableMessage(message, field), out);
      continue;
    }
    for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
      Collect(reflection->MutableRepeatedMessage(message, field, i), out);
    }
  }
}

}  // namespace

std::string ProtoMutator::String() {
  static const char* const kNasty[] = {"",
                                       ".",
                                       "..",
                                       "../../x",
                                       "/etc/passwd",
                                       "a/b",
                                       "a\\b",
                                       " ",
                                       "\n",
                                       "%s%n",
                                       "\xc3\xa4",
                                       "*",
                                       "-",
                                       "0",
                                       "-1",
                                       "NaN",
                                       "cpu-0",
                                       "ftjob-",
                                       "'; DROP TABLE jobs; --",
                                       "\xe2\x80\xae",
                                       "\x7f"};
  switch (Draw(6)) {
    case 0:
      return std::string(Draw(5000), static_cast<char>('a' + Draw(26)));
    case 1:
      return std::string(1 + Draw(3), '\0');
    case 2:
      return std::string(64, "0123456789abcdefg"[Draw(17)]);
    case 3:
    case 4:
      if (!words_.empty()) return words_[Draw(words_.size())];
      [[fallthrough]];
    default:
      return kNasty[Draw(std::size(kNasty))];
  }
}

int64_t ProtoMutator::Integer() {
  static constexpr int64_t kExtremes[] = {0,
                                          1,
                                          -1,
                                          2,
                                          63,
                                          64,
                                          1000,
                                          1 << 20,
                                          std::numeric_limits<int32_t>::max(),
                                          std::numeric_limits<int32_t>::min(),
                                          int64_t{1} << 40,
                                          int64_t{1} << 62,
                                          std::numeric_limits<int64_t>::max(),
                                          std::numeric_limits<int64_t>::min()};
  if (Chance(20)) return static_cast<int64_t>((uint64_t{random_()} << 32) | random_());
  return kExtremes[Draw(std::size(kExtremes))];
}

double ProtoMutator::Float() {
  static const double kExtremes[] = {0, -0.0, 1, -1, 1e-320, 1e308, -1e308, 0.5, std::nan(""), INFINITY, -INFINITY};
  return kExtremes[Draw(std::size(kExtremes))];
}

void ProtoMutator::Mutate(Message* message) {
  const size_t changes = 1 + Draw(4);
  for (size_t i = 0; i < changes; ++i) Change(message);
}

void ProtoMutator::Change(Message* message) {
  std::vector<Message*> all;
  Collect(message, &all);
  Message* target = all[Draw(all.size())];
  const auto* descriptor = target->GetDescriptor();
  if (descriptor->field_count() == 0) return;
  const FieldDescriptor* field =
      descriptor->field(static_cast<int>(Draw(static_cast<size_t>(descriptor->field_count()))));
  if (Chance(15)) {
    target->GetReflection()->ClearField(target, field);
  } else if (field->is_repeated()) {
    ChangeRepeated(target, field);
  } else {
    SetField(target, field);
  }
}

void ProtoMutator::SetField(Message* message, const Field* field) {
  const Reflection* reflection = message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->SetInt32(message, field, static_cast<int32_t>(Integer()));
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->SetInt64(message, field, Integer());
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection->SetUInt32(message, field, static_cast<uint32_t>(Integer()));
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->SetUInt64(message, field, static_cast<uint64_t>(Integer()));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->SetDouble(message, field, Float());
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection->SetFloat(message, field, static_cast<float>(Float()));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->SetBool(message, field, Chance(50));
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection->SetEnumValue(message, field,
                                      Chance(70) ? static_cast<int>(Draw(16)) - 1 : static_cast<int>(Integer()));
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->SetString(message, field, String());
    case FieldDescriptor::CPPTYPE_MESSAGE:
      Change(reflection->MutableMessage(message, field));
      return;
  }
}

void ProtoMutator::ChangeRepeated(Message* message, const Field* field) {
  const Reflection* reflection = message->GetReflection();
  const int size = reflection->FieldSize(*message, field);
  switch (Draw(4)) {
    case 0:
      if (size > 0) reflection->RemoveLast(message, field);
      break;
    case 1:
      if (size > 1) reflection->SwapElements(message, field, 0, size - 1);
      break;
    case 2:
      Grow(message, field, 1);
      break;
    default:
      // Past every limit of a count, at times.
      Grow(message, field, Chance(10) ? 1100 : 1 + Draw(8));
      break;
  }
}

void ProtoMutator::Grow(Message* message, const Field* field, size_t count) {
  const Reflection* reflection = message->GetReflection();
  for (size_t i = 0; i < count; ++i) {
    const int size = reflection->FieldSize(*message, field);
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE: {
        // A copy of what is there: the second of a name that must not come twice.
        Message* added = reflection->AddMessage(message, field);
        if (size > 0) {
          added->CopyFrom(reflection->GetRepeatedMessage(*message, field, static_cast<int>(Draw(size_t(size)))));
        }
        break;
      }
      case FieldDescriptor::CPPTYPE_STRING:
        reflection->AddString(message, field, String());
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection->AddInt64(message, field, Integer());
        break;
      case FieldDescriptor::CPPTYPE_INT32:
        reflection->AddInt32(message, field, static_cast<int32_t>(Integer()));
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection->AddDouble(message, field, Float());
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection->AddEnumValue(message, field, static_cast<int>(Draw(16)) - 1);
        break;
      default:
        return;
    }
  }
}

std::string ProtoMutator::MutateBytes(std::string bytes) {
  const size_t changes = 1 + Draw(4);
  for (size_t i = 0; i < changes; ++i) {
    const size_t at = Draw(bytes.size() + 1);
    switch (Draw(5)) {
      case 0:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << Draw(8)));
        break;
      case 1:
        bytes.resize(at);
        break;
      case 2:
        bytes.erase(at, 1 + Draw(8));
        break;
      case 3:
        bytes.insert(at, 1 + Draw(16), static_cast<char>(Draw(256)));
        break;
      default:
        bytes.insert(at, bytes.substr(Draw(bytes.size() + 1), 1 + Draw(64)));
        break;
    }
  }
  return bytes;
}

}  // namespace longhaul
