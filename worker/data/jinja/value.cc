#include "worker/data/jinja/value.h"

#include <algorithm>

#include "base/error.h"
#include "base/status_macros.h"

namespace longhaul::data::jinja {

absl::Status Budget::Step(int64_t steps) {
  steps_ += steps;
  if (steps_ <= limits_.max_steps) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "TEMPLATE_LIMIT",
                   "takes more than " + std::to_string(limits_.max_steps) + " steps");
}

absl::Status Budget::Bytes(int64_t bytes) {
  bytes_ += bytes;
  if (bytes_ > limits_.max_bytes) {
    return MakeError(absl::StatusCode::kResourceExhausted, "TEMPLATE_LIMIT",
                     "builds more than " + std::to_string(limits_.max_bytes) + " bytes of values");
  }
  return Step(bytes / 64);
}

const Value* Dict::Find(std::string_view key) const {
  if (items_.size() <= kScanned) {
    for (const auto& [k, v] : items_) {
      if (k == key) return &v;
    }
    return nullptr;
  }
  auto it = index_.find(std::string(key));
  return it == index_.end() ? nullptr : &items_[it->second].second;
}

void Dict::Set(std::string key, Value value) {
  depth = std::max(depth, value.depth() + 1);
  if (const Value* found = Find(key)) {
    *const_cast<Value*>(found) = std::move(value);  // items_ is ours and not const
    return;
  }
  items_.emplace_back(std::move(key), std::move(value));
  if (items_.size() == kScanned + 1) {
    for (size_t i = 0; i < items_.size(); ++i) index_.emplace(items_[i].first, i);
  } else if (items_.size() > kScanned + 1) {
    index_.emplace(items_.back().first, items_.size() - 1);
  }
}

Value Value::Undefined(std::string name) {
  return Value(Data(std::in_place_index<0>, std::make_shared<const std::string>(std::move(name))));
}

Value Value::FromJson(const Json& json) {
  switch (json.type()) {
    case Json::value_t::null:
      return None();
    case Json::value_t::boolean:
      return Bool(json.get<bool>());
    case Json::value_t::number_integer:
      return Int(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto value = json.get<uint64_t>();
      return value <= INT64_MAX ? Int(static_cast<int64_t>(value)) : Float(static_cast<double>(value));
    }
    case Json::value_t::number_float:
      return Float(json.get<double>());
    case Json::value_t::string:
      return String(json.get<std::string>());
    case Json::value_t::array: {
      auto list = std::make_shared<List>();
      list->items.reserve(json.size());
      for (const Json& item : json) {
        list->items.push_back(FromJson(item));
        list->depth = std::max(list->depth, list->items.back().depth() + 1);
      }
      return OfList(std::move(list));
    }
    case Json::value_t::object: {
      auto dict = std::make_shared<Dict>();
      for (auto it = json.begin(); it != json.end(); ++it) dict->Set(it.key(), FromJson(it.value()));
      return OfDict(std::move(dict));
    }
    default:
      return {};
  }
}

const std::string& Value::undefined_name() const {
  static const std::string none;
  const auto& name = std::get<0>(data_);
  return name ? *name : none;
}

bool Value::SameObject(const Value& other) const {
  if (kind() != other.kind()) return false;
  if (Is(Kind::kString)) return std::get<5>(data_) == std::get<5>(other.data_);
  if (Is(Kind::kList)) return std::get<6>(data_) == std::get<6>(other.data_);
  if (Is(Kind::kDict)) return std::get<7>(data_) == std::get<7>(other.data_);
  if (Is(Kind::kNamespace)) return std::get<8>(data_) == std::get<8>(other.data_);
  return Is(Kind::kNone);
}

int Value::depth() const {
  if (Is(Kind::kList)) return list().depth;
  if (Is(Kind::kDict)) return dict().depth;
  return 0;
}

const char* TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "undefined";
    case Kind::kNone:
      return "none";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return value.list().tuple ? "tuple" : "list";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "namespace";
    case Kind::kLoop:
      return "loop";
    case Kind::kCallable:
      return "function";
  }
  return "value";
}

absl::Status TemplateError(const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TEMPLATE_ERROR", what);
}

absl::Status AtLine(const absl::Status& status, int line) {
  constexpr absl::string_view kPrefix = "chat template line ";
  const absl::string_view message = status.message();
  if (status.ok() || message.substr(0, kPrefix.size()) == kPrefix) return status;
  return Annotate(status, std::string(kPrefix) + std::to_string(line));
}

absl::StatusOr<Value> NewString(std::string text, Budget* budget) {
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(text.size())));
  return Value::String(std::move(text));
}

absl::Status CheckStorable(const Value& value) {
  if (value.Is(Kind::kNamespace) || value.Is(Kind::kLoop) || value.Is(Kind::kCallable)) {
    return TemplateError(std::string("a ") + TypeName(value) + " cannot be stored in another value");
  }
  if (value.depth() >= limits::kMaxTemplateDepth) {
    return TemplateError("values nest deeper than " + std::to_string(limits::kMaxTemplateDepth) + " levels");
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> NewList(std::vector<Value> items, Budget* budget, bool tuple) {
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>((items.size() + 1) * sizeof(Value))));
  auto list = std::make_shared<List>();
  list->tuple = tuple;
  for (const Value& item : items) {
    LH_RETURN_IF_ERROR(CheckStorable(item));
    list->depth = std::max(list->depth, item.depth() + 1);
  }
  list->items = std::move(items);
  return Value::OfList(std::move(list));
}

absl::StatusOr<Value> NewDict(std::vector<std::pair<std::string, Value>> items, Budget* budget) {
  auto dict = std::make_shared<Dict>();
  for (auto& [key, value] : items) {
    LH_RETURN_IF_ERROR(CheckStorable(value));
    LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(key.size() + 2 * sizeof(Value))));
    dict->Set(std::move(key), std::move(value));
  }
  return Value::OfDict(std::move(dict));
}

}  // namespace longhaul::data::jinja
