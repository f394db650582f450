#include "worker/data/jinja/filters.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/data/jinja/format.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/numbers.h"
#include "worker/data/jinja/text.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

using FilterFunction = absl::StatusOr<Value> (*)(const Value& value, const Arguments& arguments, Budget* budget);

absl::Status UnknownFilter(const std::string& name) {
  return MakeError(absl::StatusCode::kUnimplemented, "TEMPLATE_UNSUPPORTED", "the filter '" + name + "' is not known");
}

absl::Status IsUndefined(const Value& value) { return TemplateError("'" + value.undefined_name() + "' is undefined"); }

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
    style.item_separator.assign(1, ',');
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

// Unlike the method: words begin after white space, - ( { [ and < only, so that "it's" is "It's".
absl::StatusOr<Value> TitleFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "title", {}));
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
  const std::string_view all = text;
  std::string out;
  for (size_t begin = 0, at = 0; at <= all.size();) {
    const CodePoint c = at < all.size() ? DecodeAt(all, at) : CodePoint{' ', 1};
    const auto bytes = static_cast<size_t>(c.bytes);
    const bool between =
        IsPythonSpace(c.value) || (c.value < 0x80 && std::string_view("-({[<").find(all[at]) != std::string_view::npos);
    if (between && begin < at) {
      const auto first = static_cast<size_t>(DecodeAt(all, begin).bytes);
      out += Upper(all.substr(begin, first));
      out += Lower(all.substr(begin + first, at - begin - first));
    }
    if (between && at < all.size()) out += all.substr(at, bytes);
    at += bytes;
    if (between) begin = at;
  }
  return NewString(std::move(out), budget);
}

absl::StatusOr<Value> ReplaceFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "replace", {"old", "new", "count"}, 2));
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
  LH_ASSIGN_OR_RETURN(const std::string from, ToStr(bound[0], budget));
  LH_ASSIGN_OR_RETURN(const std::string to, ToStr(bound[1], budget));
  return Replace(text, from, to, bound[2].IsInteger() ? bound[2].integer() : -1, budget);
}

// The number that text or a number means, by `default` where it means none.
absl::StatusOr<Value> IntFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "int", {"default", "base"}));
  const Value fallback = bound[0].Is(Kind::kUndefined) ? Value::Int(0) : bound[0];
  if (value.Is(Kind::kUndefined)) return IsUndefined(value);
  if (value.IsInteger()) return Value::Int(value.integer());
  if (value.Is(Kind::kFloat)) return std::isnan(value.number()) ? fallback : IntegerOf(value.number());
  if (!value.Is(Kind::kString)) return fallback;
  LH_RETURN_IF_ERROR(budget->Bytes(2 * static_cast<int64_t>(value.str().size())));
  const Value base = bound[1].Is(Kind::kUndefined) ? Value::Int(10) : bound[1];
  if (base.IsInteger()) {
    LH_ASSIGN_OR_RETURN(const auto integer, ParsePythonInt(value.str(), base.integer()));
    if (integer.has_value()) return Value::Int(*integer);
  }
  const auto number = ParsePythonFloat(value.str());  // "42.23" is 42
  if (!number.has_value() || !std::isfinite(*number)) return fallback;
  return IntegerOf(*number);
}

absl::StatusOr<Value> FloatFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "float", {"default"}));
  if (value.Is(Kind::kUndefined)) return IsUndefined(value);
  if (value.IsNumber()) return Value::Float(value.number());
  if (value.Is(Kind::kString)) {
    LH_RETURN_IF_ERROR(budget->Bytes(2 * static_cast<int64_t>(value.str().size())));
    if (const auto number = ParsePythonFloat(value.str())) return Value::Float(*number);
  }
  return bound[0].Is(Kind::kUndefined) ? Value::Float(0) : bound[0];
}

absl::StatusOr<Value> Abs(const Value& value, const Arguments& arguments, Budget*) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "abs", {}));
  if (value.Is(Kind::kUndefined)) return IsUndefined(value);
  if (!value.IsNumber()) return TemplateError(std::string("abs needs a number, got ") + TypeName(value));
  if (value.Is(Kind::kFloat)) return Value::Float(std::fabs(value.number()));
  return value.integer() < 0 ? Negate(value) : Value::Int(value.integer());
}

absl::StatusOr<Value> FormatFilter(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const std::string format, ToStr(value, budget));
  if (arguments.named.empty()) {
    LH_ASSIGN_OR_RETURN(const Value tuple, NewList(arguments.positional, budget, true));
    return PercentFormat(format, tuple, budget);
  }
  if (!arguments.positional.empty()) return TemplateError("format takes either positional or named arguments");
  LH_ASSIGN_OR_RETURN(const Value dict, NewDict(arguments.named, budget));
  return PercentFormat(format, dict, budget);
}

std::string_view Entity(char c) {
  switch (c) {
    case '&':
      return "&amp;";
    case '<':
      return "&lt;";
    case '>':
      return "&gt;";
    case '\'':
      return "&#39;";
    case '"':
      return "&#34;";
    default:
      return {};
  }
}

absl::StatusOr<Value> Escape(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "escape", {}));
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
  int64_t size = 0;
  for (char c : text) size += static_cast<int64_t>(std::max<size_t>(Entity(c).size(), 1));
  LH_RETURN_IF_ERROR(budget->Bytes(size));  // before anything is built
  std::string out;
  out.reserve(static_cast<size_t>(size));
  for (char c : text) {
    if (const std::string_view entity = Entity(c); !entity.empty()) {
      out += entity;
    } else {
      out.push_back(c);
    }
  }
  return Value::String(std::move(out));
}

absl::StatusOr<Value> WordCount(const Value& value, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, "wordcount", {}));
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, budget));
  LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(text.size() / 64)));
  int64_t words = 0;
  bool in_word = false;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeAt(text, i);
    i += static_cast<size_t>(c.bytes);
    const bool is_word = IsPythonWord(c.value);
    words += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return Value::Int(words);
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
absl::StatusOr<Value> SortFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> UniqueFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> BatchFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> MinFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> MaxFilter(const Value&, const Arguments&, Budget*);
absl::StatusOr<Value> SumFilter(const Value&, const Arguments&, Budget*);
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
      {"float", FloatFilter},
      {"abs", Abs},
      {"format", FormatFilter},
      {"escape", Escape},
      {"e", Escape},
      {"wordcount", WordCount},
      {"indent", Indent},
      {"list", ListFilter},
      {"first", FirstFilter},
      {"last", LastFilter},
      {"join", JoinFilter},
      {"items", ItemsFilter},
      {"dictsort", DictSortFilter},
      {"reverse", ReverseFilter},
      {"sort", SortFilter},
      {"unique", UniqueFilter},
      {"batch", BatchFilter},
      {"min", MinFilter},
      {"max", MaxFilter},
      {"sum", SumFilter},
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
