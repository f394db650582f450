#include "worker/data/jinja/filters.h"

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/text.h"

namespace longhaul::data::jinja {
namespace {

using FilterFunction = absl::StatusOr<Value> (*)(const Value& value, const Arguments& arguments, Budget* budget);

absl::Status UnknownFilter(const std::string& name) {
  return MakeError(absl::StatusCode::kUnimplemented, "TEMPLATE_UNSUPPORTED", "the filter '" + name + "' is not known");
}

absl::StatusOr<Value> Trim(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "trim", {"chars"}));
  LH_ASSIGN_OR_RETURN(std::string text, ToStr(value, budget));
  return CallMethod(Value::String(std::move(text)), "strip", {{bound[0]}, {}}, budget);
}

absl::StatusOr<Value> LengthFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "length", {}));
  if (value.Is(Kind::kString)) LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(value.str().size() / 64)));
  LH_ASSIGN_OR_RETURN(const int64_t length, Length(value));
  return Value::Int(length);
}

absl::StatusOr<Value> ToJsonFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound,
                      Bind(arguments, "tojson", {"indent", "ensure_ascii", "separators", "sort_keys"}));
  JsonStyle style;
  if (bound[0].IsInteger()) {
    if (bound[0].integer() > 64) return TemplateError("tojson: indent must be at most 64");
    style.indent = static_cast<int>(std::max<int64_t>(bound[0].integer(), 0));
    style.item_separator = ",";
  } else if (!bound[0].Is(Kind::kUndefined) && !bound[0].Is(Kind::kNone)) {
    return TemplateError("tojson: indent must be an integer");
  }
  style.ensure_ascii = Truthy(bound[1]);
  style.sort_keys = Truthy(bound[3]);
  if (bound[2].Is(Kind::kList)) {
    const auto& pair = bound[2].list().items;
    if (pair.size() != 2 || !pair[0].Is(Kind::kString) || !pair[1].Is(Kind::kString)) {
      return TemplateError("tojson: separators must be two strings");
    }
    style.item_separator = pair[0].str();
    style.key_separator = pair[1].str();
  }
  LH_ASSIGN_OR_RETURN(std::string text, ToJson(value, style, budget));
  return NewString(std::move(text), budget);
}

absl::StatusOr<Value> Default(const Value& value, const Arguments& arguments, Budget*) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "default", {"default_value", "boolean"}));
  const bool missing = value.Is(Kind::kUndefined) || (Truthy(bound[1]) && !Truthy(value));
  if (!missing) return value;
  return arguments.positional.empty() && arguments.named.empty() ? Value::String("") : bound[0];
}

absl::StatusOr<Value> StringFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "string", {}));
  if (value.Is(Kind::kString)) return value;
  LH_ASSIGN_OR_RETURN(std::string text, ToStr(value, budget));
  return NewString(std::move(text), budget);
}

absl::StatusOr<Value> Safe(const Value& value, const Arguments& arguments, Budget* budget) {
  return StringFilter(value, arguments, budget);
}

template <std::string (*kFunction)(std::string_view)>
absl::StatusOr<Value> Case(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "a case filter", {}));
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
  return NewString(kFunction(text), budget);
}

absl::StatusOr<Value> TitleFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(std::string text, ToStr(value, budget));
  return CallMethod(Value::String(std::move(text)), "title", arguments, budget);
}

absl::StatusOr<Value> ReplaceFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "replace", {"old", "new", "count"}, 2));
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
  LH_ASSIGN_OR_RETURN(const std::string from, ToStr(bound[0], budget));
  LH_ASSIGN_OR_RETURN(const std::string to, ToStr(bound[1], budget));
  return Replace(text, from, to, bound[2].IsInteger() ? bound[2].integer() : -1, budget);
}

absl::StatusOr<Value> IntFilter(const Value& value, const Arguments& arguments, Budget*) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "int", {"default"}));
  if (value.IsInteger()) return Value::Int(value.integer());
  if (value.Is(Kind::kFloat) && value.number() > -9.2e18 && value.number() < 9.2e18) {
    return Value::Int(static_cast<int64_t>(value.number()));
  }
  if (value.Is(Kind::kString)) {
    std::string_view text = StripBegin(StripEnd(value.str()));
    if (!text.empty() && text[0] == '+') text.remove_prefix(1);
    int64_t out = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), out);
    if (result.ec == std::errc() && result.ptr == text.data() + text.size()) return Value::Int(out);
  }
  return bound[0].Is(Kind::kUndefined) ? Value::Int(0) : bound[0];
}

absl::StatusOr<Value> Indent(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "indent", {"width", "first", "blank"}));
  LH_ASSIGN_OR_RETURN(std::string text, ToStr(value, budget));
  std::string pad(4, ' ');
  if (bound[0].Is(Kind::kString)) pad = bound[0].str();
  if (bound[0].IsInteger())
    pad = std::string(static_cast<size_t>(std::clamp<int64_t>(bound[0].integer(), 0, 1024)), ' ');
  const bool first = Truthy(bound[1]), blank = Truthy(bound[2]);
  std::string out;
  size_t begin = 0;
  for (bool is_first = true; begin <= text.size(); is_first = false) {
    const size_t newline = std::min(text.find('\n', begin), text.size());
    const bool padded = (!is_first || first) && (newline > begin || blank || (is_first && first));
    LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(newline - begin + (padded ? pad.size() : 0))));
    if (padded) out += pad;
    out.append(text, begin, newline - begin);
    if (newline < text.size()) out.push_back('\n');
    begin = newline + 1;
  }
  return NewString(std::move(out), budget);
}

}  // namespace

// filters_sequence.cc
absl::StatusOr<Value> ListFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> FirstFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> LastFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> JoinFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> ItemsFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> DictSortFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> ReverseFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> MapFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> SelectFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> RejectFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> SelectAttrFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> RejectAttrFilter(const Value&, const Arguments&, Budget*);

namespace {

const std::unordered_map<std::string, FilterFunction>& Filters() {
  static const std::unordered_map<std::string, FilterFunction> filters = {
      {"trim", Trim},
      {"length", LengthFilter},
      {"count", LengthFilter},
      {"tojson", ToJsonFilter},
      {"default", Default},
      {"d", Default},
      {"string", StringFilter},
      {"safe", Safe},
      {"upper", Case<Upper>},
      {"lower", Case<Lower>},
      {"capitalize", Case<Capitalize>},
      {"title", TitleFilter},
      {"replace", ReplaceFilter},
      {"int", IntFilter},
      {"indent", Indent},
      {"list", ListFilter},
      {"first", FirstFilter},
      {"last", LastFilter},
      {"join", JoinFilter},
      {"items", ItemsFilter},
      {"dictsort", DictSortFilter},
      {"reverse", ReverseFilter},
      {"map", MapFilter},
      {"select", SelectFilter},
      {"reject", RejectFilter},
      {"selectattr", SelectAttrFilter},
      {"rejectattr", RejectAttrFilter},
  };
  return filters;
}

}  // namespace

absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& value, const Arguments& arguments,
                                  Budget* budget) {
  auto it = Filters().find(name);
  if (it == Filters().end()) return UnknownFilter(name);
  LH_RETURN_IF_ERROR(budget->Step());
  return it->second(value, arguments, budget);
}

}  // namespace longhaul::data::jinja
