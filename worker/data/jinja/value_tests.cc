// Tests: value is name(arguments) (filters.h).
#include <unordered_map>

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/data/jinja/filters.h"
#include "worker/data/jinja/text.h"

namespace longhaul::data::jinja {
namespace {

// Tests of the value alone.
const std::unordered_map<std::string, bool (*)(const Value&)>& PlainTests() {
  static const std::unordered_map<std::string, bool (*)(const Value&)> tests = {
      {"defined", [](const Value& v) { return !v.Is(Kind::kUndefined); }},
      {"undefined", [](const Value& v) { return v.Is(Kind::kUndefined); }},
      {"none", [](const Value& v) { return v.Is(Kind::kNone); }},
      {"string", [](const Value& v) { return v.Is(Kind::kString); }},
      {"mapping", [](const Value& v) { return v.Is(Kind::kDict); }},
      {"number", [](const Value& v) { return v.IsNumber(); }},
      {"integer", [](const Value& v) { return v.Is(Kind::kInt); }},
      {"float", [](const Value& v) { return v.Is(Kind::kFloat); }},
      {"boolean", [](const Value& v) { return v.Is(Kind::kBool); }},
      {"true", [](const Value& v) { return v.Is(Kind::kBool) && v.boolean(); }},
      {"false", [](const Value& v) { return v.Is(Kind::kBool) && !v.boolean(); }},
      {"callable", [](const Value& v) { return v.Is(Kind::kCallable); }},
      {"iterable",
       [](const Value& v) {
         return v.Is(Kind::kString) || v.Is(Kind::kList) || v.Is(Kind::kDict) || v.Is(Kind::kUndefined);
       }},
      {"sequence",
       [](const Value& v) {
         return v.Is(Kind::kString) || v.Is(Kind::kList) || v.Is(Kind::kDict) || v.Is(Kind::kUndefined);
       }},
  };
  return tests;
}

// Tests that are a comparison.
const std::unordered_map<std::string, Operator>& ComparisonTests() {
  static const std::unordered_map<std::string, Operator> tests = {
      {"equalto", Operator::kEqual},   {"eq", Operator::kEqual},
      {"ne", Operator::kNotEqual},     {"lt", Operator::kLess},
      {"lessthan", Operator::kLess},   {"le", Operator::kLessEqual},
      {"gt", Operator::kGreater},      {"greaterthan", Operator::kGreater},
      {"ge", Operator::kGreaterEqual}, {"in", Operator::kIn},
  };
  return tests;
}

absl::StatusOr<bool> Divides(const Value& value, int64_t by) {
  if (!value.IsInteger()) return TemplateError(std::string("an integer test on a ") + TypeName(value));
  if (by == 0) return TemplateError("division by zero");
  return by == -1 || value.integer() % by == 0;
}

}  // namespace

absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& value, const Arguments& arguments,
                               Budget* budget) {
  LH_RETURN_IF_ERROR(budget->Step());
  if (auto it = PlainTests().find(name); it != PlainTests().end()) {
    LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, name, {}));
    return it->second(value);
  }
  if (auto it = ComparisonTests().find(name); it != ComparisonTests().end()) {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"other"}, 1));
    return Compare(it->second, value, bound[0], budget);
  }
  if (name == "divisibleby") {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"num"}, 1));
    if (!bound[0].IsInteger()) return TemplateError("divisibleby needs an integer");
    return Divides(value, bound[0].integer());
  }
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, name, {}));
  if (name == "even") return Divides(value, 2);
  if (name == "odd") {
    LH_ASSIGN_OR_RETURN(const bool even, Divides(value, 2));
    return !even;
  }
  if (name == "lower" || name == "upper") {
    LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
    LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(text.size())));
    const std::string lower = Lower(text), upper = Upper(text);
    return lower != upper && text == (name == "lower" ? lower : upper);
  }
  return MakeError(absl::StatusCode::kUnimplemented, "TEMPLATE_UNSUPPORTED", "the test '" + name + "' is not known");
}

}  // namespace longhaul::data::jinja
