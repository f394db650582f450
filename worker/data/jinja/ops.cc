#include "worker/data/jinja/ops.h"

#include <algorithm>
#include <cmath>

#include "base/status_macros.h"
#include "worker/data/jinja/format.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/text.h"

namespace longhaul::data::jinja {
namespace {

absl::Status NoOperands(const char* op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b}) {
    if (v->Is(Kind::kUndefined)) return TemplateError("'" + v->undefined_name() + "' is undefined");
  }
  return TemplateError(std::string("cannot use ") + op + " on " + TypeName(a) + " and " + TypeName(b));
}

absl::StatusOr<bool> DictEquals(const Dict& a, const Dict& b, Budget* budget) {
  if (a.items().size() != b.items().size()) return false;
  for (const auto& [key, value] : a.items()) {
    const Value* other = b.Find(key);
    if (other == nullptr) return false;
    LH_ASSIGN_OR_RETURN(const bool same, Equals(value, *other, budget));
    if (!same) return false;
  }
  return true;
}

absl::StatusOr<bool> ListEquals(const List& a, const List& b, Budget* budget) {
  if (a.items.size() != b.items.size() || a.tuple != b.tuple) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    LH_ASSIGN_OR_RETURN(const bool same, Equals(a.items[i], b.items[i], budget));
    if (!same) return false;
  }
  return true;
}

absl::Status Overflow() { return TemplateError("an integer is out of the range of 64 bits"); }

absl::StatusOr<Value> IntegerBinary(Operator op, int64_t a, int64_t b) {
  int64_t out = 0;
  switch (op) {
    case Operator::kAdd:
      if (__builtin_add_overflow(a, b, &out)) return Overflow();
      return Value::Int(out);
    case Operator::kSubtract:
      if (__builtin_sub_overflow(a, b, &out)) return Overflow();
      return Value::Int(out);
    case Operator::kMultiply:
      if (__builtin_mul_overflow(a, b, &out)) return Overflow();
      return Value::Int(out);
    case Operator::kDivide:
      if (b == 0) return TemplateError("division by zero");
      return Value::Float(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == 0) return TemplateError("division by zero");
      if (b == -1) return op == Operator::kModulo ? Value::Int(0) : Negate(Value::Int(a));
      const bool round_down = a % b != 0 && (a % b < 0) != (b < 0);
      if (op == Operator::kModulo) return Value::Int(a % b + (round_down ? b : 0));
      return Value::Int(a / b - (round_down ? 1 : 0));
    }
    case Operator::kPower: {
      if (b < 0) return Value::Float(std::pow(static_cast<double>(a), static_cast<double>(b)));
      out = 1;
      // |a| >= 2 overflows within 64 rounds; smaller bases settle by parity.
      if (a == 0 || a == 1) return Value::Int(b == 0 ? 1 : a);
      if (a == -1) return Value::Int(b % 2 == 0 ? 1 : -1);
      for (int64_t i = 0; i < b; ++i) {
        if (__builtin_mul_overflow(out, a, &out)) return Overflow();
      }
      return Value::Int(out);
    }
    default:
      return TemplateError("not an arithmetic operator");
  }
}

absl::StatusOr<Value> FloatBinary(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Value::Float(a + b);
    case Operator::kSubtract:
      return Value::Float(a - b);
    case Operator::kMultiply:
      return Value::Float(a * b);
    case Operator::kPower:
      return Value::Float(std::pow(a, b));
    default:
      break;
  }
  if (b == 0) return TemplateError("division by zero");
  if (op == Operator::kDivide) return Value::Float(a / b);
  if (op == Operator::kFloorDivide) return Value::Float(std::floor(a / b));
  const double rest = std::fmod(a, b);
  return Value::Float(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

absl::StatusOr<Value> Repeat(const Value& value, int64_t times, Budget* budget) {
  times = std::max<int64_t>(times, 0);
  const auto size =
      static_cast<int64_t>(value.Is(Kind::kString) ? value.str().size() : value.list().items.size() * sizeof(Value));
  int64_t total = 0;
  if (__builtin_mul_overflow(size, times, &total)) total = INT64_MAX / 2;
  LH_RETURN_IF_ERROR(budget->Bytes(total));  // before anything is built
  if (total == 0) times = 0;
  if (value.Is(Kind::kString)) {
    std::string out;
    for (int64_t i = 0; i < times; ++i) out += value.str();
    return Value::String(std::move(out));
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < times; ++i) {
    items.insert(items.end(), value.list().items.begin(), value.list().items.end());
  }
  return NewList(std::move(items), budget, value.list().tuple);
}

absl::StatusOr<Value> Append(Value a, std::string_view b, Budget* budget) {
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(b.size())));
  if (std::string* own = a.own_string()) {
    own->append(b);
    return a;
  }
  std::string joined;
  joined.reserve(a.str().size() + b.size());
  joined.append(a.str()).append(b);
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(a.str().size())));
  return Value::String(std::move(joined));
}

}  // namespace

bool Truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    case Kind::kString:
      return !value.str().empty();
    case Kind::kList:
      return !value.list().items.empty();
    case Kind::kDict:
      return !value.dict().items().empty();
    default:
      return true;
  }
}

absl::StatusOr<bool> Equals(const Value& a, const Value& b, Budget* budget) {
  LH_RETURN_IF_ERROR(budget->Step());
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.kind() != b.kind()) return false;
  if (a.Is(Kind::kUndefined) || a.SameObject(b)) return true;
  if (a.Is(Kind::kString)) {
    LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(std::min(a.str().size(), b.str().size()) / 256)));
    return a.str() == b.str();
  }
  if (a.Is(Kind::kList)) return ListEquals(a.list(), b.list(), budget);
  if (a.Is(Kind::kDict)) return DictEquals(a.dict(), b.dict(), budget);
  return false;
}

absl::StatusOr<int> Order(const Value& a, const Value& b, Budget* budget) {
  LH_RETURN_IF_ERROR(budget->Step());
  if (a.IsInteger() && b.IsInteger()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
  if (a.IsNumber() && b.IsNumber()) return a.number() < b.number() ? -1 : a.number() > b.number();
  if (a.Is(Kind::kString) && b.Is(Kind::kString)) {
    LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(std::min(a.str().size(), b.str().size()) / 256)));
    const int order = a.str().compare(b.str());
    return order < 0 ? -1 : order > 0;
  }
  const bool lists = a.Is(Kind::kList) && b.Is(Kind::kList) && a.list().tuple == b.list().tuple;
  if (!lists) return NoOperands("<", a, b);
  const auto &left = a.list().items, &right = b.list().items;
  for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    LH_ASSIGN_OR_RETURN(const bool same, Equals(left[i], right[i], budget));
    if (!same) return Order(left[i], right[i], budget);
  }
  return left.size() < right.size() ? -1 : left.size() > right.size();
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget) {
  switch (container.kind()) {
    case Kind::kUndefined:
      return false;
    case Kind::kString: {
      if (!item.Is(Kind::kString)) return NoOperands("in", item, container);
      LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(container.str().size() / 64)));
      return Find(container.str(), item.str(), 0) != std::string_view::npos;
    }
    case Kind::kDict:
      return item.Is(Kind::kString) && container.dict().Find(item.str()) != nullptr;
    case Kind::kList:
      for (const Value& candidate : container.list().items) {
        LH_ASSIGN_OR_RETURN(const bool same, Equals(candidate, item, budget));
        if (same) return true;
      }
      return false;
    default:
      return NoOperands("in", item, container);
  }
}

absl::StatusOr<bool> Compare(Operator op, const Value& a, const Value& b, Budget* budget) {
  switch (op) {
    case Operator::kEqual:
      return Equals(a, b, budget);
    case Operator::kNotEqual: {
      LH_ASSIGN_OR_RETURN(const bool same, Equals(a, b, budget));
      return !same;
    }
    case Operator::kIn:
      return Contains(b, a, budget);
    case Operator::kNotIn: {
      LH_ASSIGN_OR_RETURN(const bool in, Contains(b, a, budget));
      return !in;
    }
    default:
      break;
  }
  auto is_nan = [](const Value& v) { return v.Is(Kind::kFloat) && std::isnan(v.number()); };
  if (a.IsNumber() && b.IsNumber() && (is_nan(a) || is_nan(b))) return false;
  LH_ASSIGN_OR_RETURN(const int order, Order(a, b, budget));
  if (op == Operator::kLess) return order < 0;
  if (op == Operator::kLessEqual) return order <= 0;
  if (op == Operator::kGreater) return order > 0;
  return order >= 0;
}

absl::StatusOr<Value> Binary(Operator op, Value a, const Value& b, Budget* budget) {
  static constexpr const char* kNames[] = {"+", "-", "*", "/", "//", "%", "**", "~"};
  if (op == Operator::kConcat) {
    LH_ASSIGN_OR_RETURN(const std::string right, ToStr(b, budget));
    if (!a.Is(Kind::kString)) {
      LH_ASSIGN_OR_RETURN(std::string left, ToStr(a, budget));
      a = Value::String(std::move(left));
    }
    return Append(std::move(a), right, budget);
  }
  if (a.IsInteger() && b.IsInteger()) return IntegerBinary(op, a.integer(), b.integer());
  if (a.IsNumber() && b.IsNumber()) return FloatBinary(op, a.number(), b.number());
  if (op == Operator::kAdd && a.Is(Kind::kString) && b.Is(Kind::kString)) return Append(std::move(a), b.str(), budget);
  if (op == Operator::kAdd && a.Is(Kind::kList) && b.Is(Kind::kList) && a.list().tuple == b.list().tuple) {
    LH_RETURN_IF_ERROR(
        budget->Bytes(static_cast<int64_t>((a.list().items.size() + b.list().items.size()) * sizeof(Value))));
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return NewList(std::move(items), budget, a.list().tuple);
  }
  if (op == Operator::kModulo && a.Is(Kind::kString)) return PercentFormat(a.str(), b, budget);
  if (op == Operator::kMultiply) {
    const bool a_repeats = a.Is(Kind::kString) || a.Is(Kind::kList);
    const bool b_repeats = b.Is(Kind::kString) || b.Is(Kind::kList);
    if (a_repeats && b.IsInteger()) return Repeat(a, b.integer(), budget);
    if (b_repeats && a.IsInteger()) return Repeat(b, a.integer(), budget);
  }
  return NoOperands(kNames[static_cast<size_t>(op)], a, b);
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.Is(Kind::kFloat)) return Value::Float(-value.number());
  if (!value.IsInteger()) return NoOperands("-", value, value);
  if (value.integer() == INT64_MIN) return Overflow();
  return Value::Int(-value.integer());
}

absl::StatusOr<int64_t> Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return CodePointCount(value.str());
    case Kind::kList:
      return static_cast<int64_t>(value.list().items.size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().items().size());
    default:
      return TemplateError(std::string("a ") + TypeName(value) + " has no length");
  }
}

absl::StatusOr<std::vector<Value>> Bind(const Arguments& arguments, const std::string& callee,
                                        const std::vector<std::string_view>& parameters, size_t required) {
  if (arguments.positional.size() > parameters.size()) {
    return TemplateError(callee + " takes at most " + std::to_string(parameters.size()) + " arguments, got " +
                         std::to_string(arguments.positional.size()));
  }
  std::vector<Value> bound = arguments.positional;
  bound.resize(parameters.size());
  for (const auto& [name, value] : arguments.named) {
    auto it = std::find(parameters.begin(), parameters.end(), name);
    if (it == parameters.end()) return TemplateError(callee + " has no argument '" + name + "'");
    const auto at = static_cast<size_t>(it - parameters.begin());
    if (at < arguments.positional.size()) return TemplateError(callee + " gets argument '" + name + "' twice");
    bound[at] = value;
  }
  for (size_t i = arguments.positional.size(); i < required; ++i) {
    const bool named = std::any_of(arguments.named.begin(), arguments.named.end(),
                                   [&](const auto& entry) { return entry.first == parameters[i]; });
    if (!named) return TemplateError(callee + " needs argument '" + std::string(parameters[i]) + "'");
  }
  return bound;
}

}  // namespace longhaul::data::jinja
