#include "base/status_macros.h"
#include "worker/data/jinja/filters.h"
#include "worker/data/jinja/interpreter.h"

namespace longhaul::data::jinja {

absl::StatusOr<Value> Interpreter::Eval(const Expr& expr, Scope* scope) {
  Frame frame(this);
  absl::Status status = frame.Check();
  if (status.ok()) status = budget_.Step();
  if (!status.ok()) return AtLine(status, expr.line);
  auto value = EvalKind(expr, scope);
  if (!value.ok()) return AtLine(value.status(), expr.line);
  return value;
}

absl::StatusOr<Value> Interpreter::EvalKind(const Expr& expr, Scope* scope) {
  switch (expr.kind) {
    case ExprKind::kLiteral:
      return expr.literal;
    case ExprKind::kName:
      return EvalName(expr, scope);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return EvalItems(expr, scope);
    case ExprKind::kDict:
      return EvalDict(expr, scope);
    case ExprKind::kSlice:
      return EvalSlice(expr, scope);
    case ExprKind::kCall:
      return EvalCall(expr, scope);
    case ExprKind::kTest:
      return EvalTest(expr, scope);
    case ExprKind::kBinary:
      return EvalBinary(expr, scope);
    case ExprKind::kCompare:
      return EvalCompare(expr, scope);
    case ExprKind::kAnd:
    case ExprKind::kOr:
    case ExprKind::kConditional:
      return EvalLogic(expr, scope);
    default:
      break;
  }
  LH_ASSIGN_OR_RETURN(Value value, Eval(*expr.operands[0], scope));
  if (expr.kind == ExprKind::kNot) return Value::Bool(!Truthy(value));
  if (expr.kind == ExprKind::kNegate) return Negate(value);
  if (expr.kind == ExprKind::kAttribute) return GetAttribute(value, expr.name);
  if (expr.kind == ExprKind::kFilter) return EvalFilter(expr, std::move(value), scope);
  LH_ASSIGN_OR_RETURN(const Value key, Eval(*expr.operands[1], scope));
  return GetItem(value, key, &budget_);
}

absl::StatusOr<Value> Interpreter::EvalName(const Expr& expr, Scope* scope) {
  for (const Scope* s = scope; s != nullptr; s = s->parent) {
    if (auto it = s->names.find(expr.name); it != s->names.end()) return it->second;
  }
  const bool global = expr.name == "namespace" || expr.name == "range" || expr.name == "raise_exception" ||
                      expr.name == "dict" || (expr.name == "strftime_now" && options_.now_seconds.has_value());
  if (!global) return Value::Undefined(expr.name);
  auto callable = std::make_shared<Callable>();
  callable->name = expr.name;
  return Value::OfCallable(std::move(callable));
}

absl::StatusOr<Value> Interpreter::EvalItems(const Expr& expr, Scope* scope) {
  std::vector<Value> items;
  for (const ExprPtr& operand : expr.operands) {
    LH_ASSIGN_OR_RETURN(items.emplace_back(), Eval(*operand, scope));
  }
  return NewList(std::move(items), &budget_, expr.kind == ExprKind::kTuple);
}

absl::StatusOr<Value> Interpreter::EvalDict(const Expr& expr, Scope* scope) {
  std::vector<std::pair<std::string, Value>> items;
  for (size_t i = 0; i + 1 < expr.operands.size(); i += 2) {
    LH_ASSIGN_OR_RETURN(const Value key, Eval(*expr.operands[i], scope));
    if (!key.Is(Kind::kString)) return TemplateError(std::string("a dict key must be a str, got ") + TypeName(key));
    LH_ASSIGN_OR_RETURN(Value value, Eval(*expr.operands[i + 1], scope));
    items.emplace_back(key.str(), std::move(value));
  }
  return NewDict(std::move(items), &budget_);
}

absl::StatusOr<Value> Interpreter::EvalSlice(const Expr& expr, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value value, Eval(*expr.operands[0], scope));
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (expr.operands[i + 1] == nullptr) continue;
    LH_ASSIGN_OR_RETURN(bounds[i], Eval(*expr.operands[i + 1], scope));
  }
  return Slice(value, bounds[0], bounds[1], bounds[2], &budget_);
}

absl::StatusOr<Value> Interpreter::EvalBinary(const Expr& expr, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value left, Eval(*expr.operands[0], scope));
  LH_ASSIGN_OR_RETURN(const Value right, Eval(*expr.operands[1], scope));
  return Binary(expr.op, std::move(left), right, &budget_);
}

absl::StatusOr<Value> Interpreter::EvalCompare(const Expr& expr, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value left, Eval(*expr.operands[0], scope));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    LH_ASSIGN_OR_RETURN(Value right, Eval(*expr.operands[i + 1], scope));
    LH_ASSIGN_OR_RETURN(const bool holds, Compare(expr.operators[i], left, right, &budget_));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Interpreter::EvalLogic(const Expr& expr, Scope* scope) {
  if (expr.kind == ExprKind::kConditional) {
    LH_ASSIGN_OR_RETURN(const Value condition, Eval(*expr.operands[1], scope));
    if (Truthy(condition)) return Eval(*expr.operands[0], scope);
    if (expr.operands[2] == nullptr) return Value::Undefined("the inline if without else");
    return Eval(*expr.operands[2], scope);
  }
  LH_ASSIGN_OR_RETURN(Value left, Eval(*expr.operands[0], scope));
  if (Truthy(left) == (expr.kind == ExprKind::kOr)) return left;
  return Eval(*expr.operands[1], scope);
}

absl::StatusOr<Value> Interpreter::EvalFilter(const Expr& expr, Value value, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr, scope));
  return ApplyFilter(expr.name, value, arguments, &budget_);
}

absl::StatusOr<Value> Interpreter::EvalTest(const Expr& expr, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value value, Eval(*expr.operands[0], scope));
  LH_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr, scope));
  LH_ASSIGN_OR_RETURN(const bool verdict, ApplyTest(expr.name, value, arguments, &budget_));
  return Value::Bool(verdict);
}

absl::StatusOr<Arguments> Interpreter::EvalArguments(const Expr& expr, Scope* scope) {
  Arguments arguments;
  for (const ExprPtr& argument : expr.arguments) {
    LH_ASSIGN_OR_RETURN(arguments.positional.emplace_back(), Eval(*argument, scope));
  }
  for (const auto& [name, argument] : expr.named_arguments) {
    LH_ASSIGN_OR_RETURN(Value value, Eval(*argument, scope));
    arguments.named.emplace_back(name, std::move(value));
  }
  return arguments;
}

}  // namespace longhaul::data::jinja
