// Calls of macros, methods and the global functions.
#include <ctime>

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/data/jinja/interpreter.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/text.h"

namespace longhaul::data::jinja {
namespace {

absl::StatusOr<Value> Range(const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "range", {"start", "stop", "step"}, 1));
  int64_t values[3] = {0, 0, 1};
  for (size_t i = 0; i < 3; ++i) {
    if (bound[i].Is(Kind::kUndefined)) continue;
    if (!bound[i].IsInteger()) return TemplateError("range needs integers");
    values[i] = bound[i].integer();
  }
  if (bound[1].Is(Kind::kUndefined)) std::swap(values[0], values[1]);
  const auto [start, stop, step] = values;
  if (step == 0) return TemplateError("range step cannot be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == limits::kMaxTemplateRange) {
      return MakeError(absl::StatusCode::kResourceExhausted, "TEMPLATE_LIMIT",
                       "a range of more than " + std::to_string(limits::kMaxTemplateRange) + " items");
    }
    items.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return NewList(std::move(items), budget);
}

absl::StatusOr<Value> FormatNow(const Arguments& arguments, int64_t now_seconds, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "strftime_now", {"format"}, 1));
  if (!bound[0].Is(Kind::kString)) return TemplateError("strftime_now needs a format");
  const auto seconds = static_cast<std::time_t>(now_seconds);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char buffer[512];
  // The mark makes an empty result different from one that does not fit.
  const std::string format = bound[0].str() + ".";
  const size_t size = std::strftime(buffer, sizeof(buffer), format.c_str(), &parts);
  if (size == 0) return TemplateError("strftime_now: the result is longer than 511 bytes");
  return NewString(std::string(buffer, size - 1), budget);
}

// Names and values given by name, or a dict.
absl::StatusOr<std::vector<std::pair<std::string, Value>>> Members(const Arguments& arguments,
                                                                   const std::string& callee) {
  std::vector<std::pair<std::string, Value>> members;
  if (arguments.positional.size() > 1) return TemplateError(callee + " takes a dict and named values");
  for (const Value& from : arguments.positional) {
    if (!from.Is(Kind::kDict)) return TemplateError(callee + " needs a dict, got " + TypeName(from));
    members = from.dict().items();
  }
  members.insert(members.end(), arguments.named.begin(), arguments.named.end());
  return members;
}

}  // namespace

absl::StatusOr<Value> Interpreter::EvalCall(const Expr& expr, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value callee, Eval(*expr.operands[0], scope));
  if (callee.Is(Kind::kUndefined)) return TemplateError("'" + callee.undefined_name() + "' is undefined");
  if (!callee.Is(Kind::kCallable)) return TemplateError(std::string("a ") + TypeName(callee) + " cannot be called");
  LH_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr, scope));
  const Callable& callable = callee.callable();
  LH_RETURN_IF_ERROR(budget_.Step());
  switch (callable.type) {
    case Callable::Type::kMacro:
      return CallMacro(callable, arguments);
    case Callable::Type::kMethod:
      return CallMethod(callable.self, callable.name, arguments, &budget_);
    case Callable::Type::kGlobal:
      break;
  }
  return CallGlobal(callable.name, arguments);
}

absl::StatusOr<Value> Interpreter::CallMacro(const Callable& callable, const Arguments& arguments) {
  const auto& macro = *static_cast<const Stmt*>(callable.macro);
  std::vector<std::string_view> names;
  for (const auto& parameter : macro.parameters) names.push_back(parameter.first);
  LH_ASSIGN_OR_RETURN(std::vector<Value> bound, Bind(arguments, callable.name, names));
  Scope scope{static_cast<Scope*>(callable.scope), {}};
  for (size_t i = 0; i < names.size(); ++i) {
    const ExprPtr& fallback = macro.parameters[i].second;
    if (bound[i].Is(Kind::kUndefined) && fallback != nullptr) {
      LH_ASSIGN_OR_RETURN(bound[i], Eval(*fallback, &scope));
    }
    scope.names[names[i]] = std::move(bound[i]);
  }
  std::string text;
  LH_RETURN_IF_ERROR(Capture(macro.body, &scope, &text).status());
  return NewString(std::move(text), &budget_);
}

absl::StatusOr<Value> Interpreter::CallGlobal(const std::string& name, const Arguments& arguments) {
  if (name == "range") return Range(arguments, &budget_);
  if (name == "strftime_now") return FormatNow(arguments, options_.now_seconds.value_or(0), &budget_);
  if (name == "raise_exception") {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"message"}, 1));
    LH_ASSIGN_OR_RETURN(const std::string message, ToStr(bound[0], &budget_));
    return TemplateError(message);
  }
  LH_ASSIGN_OR_RETURN(auto members, Members(arguments, name));
  if (name == "dict") return NewDict(std::move(members), &budget_);
  Value space = Value::Namespace();
  for (auto& [key, value] : members) {
    LH_RETURN_IF_ERROR(CheckStorable(value));
    LH_RETURN_IF_ERROR(budget_.Bytes(static_cast<int64_t>(key.size() + sizeof(Value))));
    space.mutable_namespace()->Set(key, std::move(value));
  }
  return space;
}

}  // namespace longhaul::data::jinja
