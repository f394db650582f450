// The values of a template: Python's, as far as chat templates use them. Values are immutable except a namespace.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/limits.h"
#include "worker/data/json.h"

namespace longhaul::data::jinja {

class Value;
struct Callable;
struct LoopState;

// In the order of Value's variant.
enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kDict,
  kNamespace,
  kLoop,
  kCallable,
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;  // levels of containers, itself included
};

// String keys in insertion order.
class Dict {
 public:
  const Value* Find(std::string_view key) const;  // null where absent
  void Set(std::string key, Value value);
  const std::vector<std::pair<std::string, Value>>& items() const { return items_; }
  int depth = 1;

 private:
  static constexpr size_t kScanned = 8;  // a small dict is scanned, a larger one indexed
  std::vector<std::pair<std::string, Value>> items_;
  std::unordered_map<std::string, size_t> index_;
};

class Value {
 public:
  Value() = default;  // undefined
  static Value Undefined(std::string name);
  static Value None() { return Value(Data(std::in_place_index<1>)); }
  static Value Bool(bool value) { return Value(Data(std::in_place_index<2>, value)); }
  static Value Int(int64_t value) { return Value(Data(std::in_place_index<3>, value)); }
  static Value Float(double value) { return Value(Data(std::in_place_index<4>, value)); }
  static Value String(std::string value) {
    return Value(Data(std::in_place_index<5>, std::make_shared<std::string>(std::move(value))));
  }
  static Value OfDict(std::shared_ptr<const Dict> dict) { return Value(Data(std::in_place_index<7>, std::move(dict))); }
  static Value Namespace() { return Value(Data(std::in_place_index<8>, std::make_shared<Dict>())); }
  static Value Loop(const LoopState* state) { return Value(Data(std::in_place_index<9>, state)); }
  static Value OfCallable(std::shared_ptr<const Callable> callable) {
    return Value(Data(std::in_place_index<10>, std::move(callable)));
  }
  static Value OfList(std::shared_ptr<const List> list) { return Value(Data(std::in_place_index<6>, std::move(list))); }
  static Value FromJson(const Json& json);

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool Is(Kind k) const { return kind() == k; }
  bool IsNumber() const { return Is(Kind::kBool) || Is(Kind::kInt) || Is(Kind::kFloat); }
  bool IsInteger() const { return Is(Kind::kBool) || Is(Kind::kInt); }
  // REQUIRES of each: the kind is that.
  bool boolean() const { return std::get<2>(data_); }
  int64_t integer() const { return Is(Kind::kBool) ? boolean() : std::get<3>(data_); }
  double number() const { return Is(Kind::kFloat) ? std::get<4>(data_) : static_cast<double>(integer()); }
  const std::string& str() const { return *std::get<5>(data_); }
  const List& list() const { return *std::get<6>(data_); }
  // Of a dict or a namespace.
  const Dict& dict() const { return Is(Kind::kDict) ? *std::get<7>(data_) : *std::get<8>(data_); }
  Dict* mutable_namespace() const { return std::get<8>(data_).get(); }
  const LoopState& loop() const { return *std::get<9>(data_); }
  const Callable& callable() const { return *std::get<10>(data_); }
  const std::string& undefined_name() const;
  // The string itself where nobody else holds it, so that a + b + c does not copy a twice; else null.
  std::string* own_string() {
    auto* s = std::get_if<5>(&data_);
    return s != nullptr && s->use_count() == 1 ? s->get() : nullptr;
  }
  // Whether the two are one object.
  bool SameObject(const Value& other) const;
  // Levels of containers: 0 for a scalar.
  int depth() const;

 private:
  struct None_ {};
  using Data = std::variant<std::shared_ptr<const std::string>, None_, bool, int64_t, double,
                            std::shared_ptr<std::string>, std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                            std::shared_ptr<Dict>, const LoopState*, std::shared_ptr<const Callable>>;
  explicit Value(Data data) : data_(std::move(data)) {}
  Data data_;
};

// A macro, a global function, or a method bound to its object.
struct Callable {
  enum class Type { kMacro, kGlobal, kMethod };
  Type type = Type::kGlobal;
  std::string name;
  Value self;                   // kMethod
  const void* macro = nullptr;  // kMacro: its statement
  void* scope = nullptr;        // kMacro: the scope it was defined in, which outlives every holder of the value
};

// The variable `loop`. Lives on the stack of the loop.
struct LoopState {
  const std::vector<Value>* items = nullptr;
  int64_t index0 = 0;
};

// "str", "list", ... as Python names them in messages.
const char* TypeName(const Value& value);

// Builders that charge the budget. A container holds data only (no namespace, loop or function: those could make a
// cycle or outlive their frame) and nests at most limits::kMaxTemplateDepth deep.
absl::StatusOr<Value> NewString(std::string text, Budget* budget);
absl::StatusOr<Value> NewList(std::vector<Value> items, Budget* budget, bool tuple = false);
absl::StatusOr<Value> NewDict(std::vector<std::pair<std::string, Value>> items, Budget* budget);
absl::Status CheckStorable(const Value& value);

// INVALID_ARGUMENT, reason TEMPLATE_ERROR.
absl::Status TemplateError(const std::string& what);
// The same with the line, unless the message names one already.
absl::Status AtLine(const absl::Status& status, int line);

}  // namespace longhaul::data::jinja
