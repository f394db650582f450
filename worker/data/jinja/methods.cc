#include "worker/data/jinja/methods.h"

#include <string.h>

#include <algorithm>
#include <array>

#include "base/status_macros.h"
#include "worker/data/jinja/text.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

constexpr std::array kStringMethods = {"split",      "rsplit", "strip", "lstrip",  "rstrip",     "startswith",
                                       "endswith",   "upper",  "lower", "replace", "capitalize", "title",
                                       "splitlines", "find",   "count", "join",    "isdigit"};
constexpr std::array kListMethods = {"count", "index"};
constexpr std::array kDictMethods = {"get", "items", "keys", "values"};

absl::Status WrongArgument(const std::string& method, const Value& value, const char* expected) {
  return TemplateError(method + "() takes " + expected + ", got " + TypeName(value));
}

absl::StatusOr<Value> Strings(const std::vector<std::string_view>& parts, Budget* budget) {
  std::vector<Value> items;
  for (std::string_view part : parts) {
    LH_ASSIGN_OR_RETURN(items.emplace_back(), NewString(std::string(part), budget));
  }
  return NewList(std::move(items), budget);
}

std::vector<std::string_view> SplitSpace(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> parts;
  text = StripBegin(text);
  while (!text.empty()) {
    if (static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(StripEnd(text));
      break;
    }
    size_t end = 0;
    while (end < text.size()) {
      const CodePoint c = DecodeAt(text, end);
      if (IsPythonSpace(c.value)) break;
      end += static_cast<size_t>(c.bytes);
    }
    parts.push_back(text.substr(0, end));
    text = StripBegin(text.substr(end));
  }
  return parts;
}

absl::StatusOr<Value> Split(const std::string& text, const std::string& method, const Arguments& arguments,
                            Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, method, {"sep", "maxsplit"}));
  const bool has_max = bound[1].IsInteger();
  const int64_t max_splits = has_max ? bound[1].integer() : -1;
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(text.size())));
  if (bound[0].Is(Kind::kUndefined) || bound[0].Is(Kind::kNone)) {
    if (method == "rsplit" && max_splits >= 0) return TemplateError("rsplit() with maxsplit needs a separator");
    return Strings(SplitSpace(text, max_splits), budget);
  }
  if (!bound[0].Is(Kind::kString)) return WrongArgument(method, bound[0], "a string");
  const std::string& separator = bound[0].str();
  if (separator.empty()) return TemplateError(method + "() with an empty separator");
  std::vector<std::string_view> parts;
  const std::string_view all = text;
  size_t begin = 0;
  while (true) {
    const bool stop = method == "split" && max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits;
    const size_t at = stop ? std::string_view::npos : Find(all, separator, begin);
    if (at == std::string_view::npos) break;
    parts.push_back(all.substr(begin, at - begin));
    begin = at + separator.size();
  }
  parts.push_back(all.substr(begin));
  // From the right: the first parts are one.
  if (method == "rsplit" && max_splits >= 0 && static_cast<int64_t>(parts.size()) > max_splits + 1) {
    const size_t joined = parts.size() - static_cast<size_t>(max_splits) - 1;
    const char* end = parts[joined].data() + parts[joined].size();
    const std::string_view first(all.data(), static_cast<size_t>(end - all.data()));
    parts.erase(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(joined));
    parts[0] = first;
  }
  return Strings(parts, budget);
}

absl::StatusOr<Value> Strip(const std::string& text, const std::string& method, const Arguments& arguments,
                            Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, method, {"chars"}));
  const bool has_chars = bound[0].Is(Kind::kString);
  if (!has_chars && !bound[0].Is(Kind::kUndefined) && !bound[0].Is(Kind::kNone)) {
    return WrongArgument(method, bound[0], "a string");
  }
  const std::string* chars = has_chars ? &bound[0].str() : nullptr;
  // Each character stripped is looked for among `chars`.
  LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(text.size() / 64 * (has_chars ? chars->size() + 1 : 1))));
  std::string_view out = text;
  if (method != "rstrip") out = StripBegin(out, chars);
  if (method != "lstrip") out = StripEnd(out, chars);
  return NewString(std::string(out), budget);
}

absl::StatusOr<Value> StartsOrEnds(const std::string& text, const std::string& method, const Arguments& arguments) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, method, {"prefix"}, 1));
  std::vector<Value> candidates = {bound[0]};
  if (bound[0].Is(Kind::kList) && bound[0].list().tuple) candidates = bound[0].list().items;
  bool matches = false;
  for (const Value& candidate : candidates) {
    if (!candidate.Is(Kind::kString)) return WrongArgument(method, candidate, "a string");
    const std::string& part = candidate.str();
    if (part.size() > text.size()) continue;
    matches |= text.compare(method == "startswith" ? 0 : text.size() - part.size(), part.size(), part) == 0;
  }
  return Value::Bool(matches);
}

absl::StatusOr<Value> SplitLines(const std::string& text, const Arguments& arguments, Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, "splitlines", {"keepends"}));
  const bool keep = Truthy(bound[0]);
  std::vector<std::string_view> parts;
  const std::string_view all = text;
  size_t begin = 0;
  for (size_t at = 0; at < all.size();) {
    const CodePoint c = DecodeAt(all, at);
    const size_t end = at + static_cast<size_t>(c.bytes);
    const bool breaks = (c.value >= 0x0A && c.value <= 0x0D) || (c.value >= 0x1C && c.value <= 0x1E) ||
                        c.value == 0x85 || c.value == 0x2028 || c.value == 0x2029;
    if (!breaks) {
      at = end;
      continue;
    }
    const size_t after = c.value == '\r' && end < all.size() && all[end] == '\n' ? end + 1 : end;
    parts.push_back(all.substr(begin, (keep ? after : at) - begin));
    at = begin = after;
  }
  if (begin < all.size()) parts.push_back(all.substr(begin));
  return Strings(parts, budget);
}

std::string Title(std::string_view text) {
  std::string out;
  size_t word = std::string_view::npos;
  for (size_t at = 0; at <= text.size();) {
    const CodePoint c = at < text.size() ? DecodeAt(text, at) : CodePoint{' ', 1};
    const bool letter = ClassOf(c.value) == CharClass::kLetter;
    if (letter && word == std::string_view::npos) word = at;
    if (!letter) {
      if (word != std::string_view::npos) out += Capitalize(text.substr(word, at - word));
      word = std::string_view::npos;
      if (at < text.size()) out.append(text, at, static_cast<size_t>(c.bytes));
    }
    at += static_cast<size_t>(c.bytes);
  }
  return out;
}

absl::StatusOr<Value> CallSearch(const std::string& text, const std::string& name, const Arguments& arguments,
                                 Budget* budget) {
  LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"sub"}, 1));
  if (!bound[0].Is(Kind::kString)) return WrongArgument(name, bound[0], "a string");
  LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(text.size() / 64)));
  const std::string& needle = bound[0].str();
  if (name == "find") {
    const size_t at = Find(text, needle, 0);
    return Value::Int(at == std::string_view::npos ? -1 : CodePointCount(std::string_view(text).substr(0, at)));
  }
  if (needle.empty()) return Value::Int(CodePointCount(text) + 1);
  int64_t count = 0;
  for (size_t at = Find(text, needle, 0); at != std::string_view::npos; at = Find(text, needle, at + needle.size())) {
    ++count;
  }
  return Value::Int(count);
}

absl::StatusOr<Value> CallStringMethod(const std::string& text, const std::string& name, const Arguments& arguments,
                                       Budget* budget) {
  if (name == "split" || name == "rsplit") return Split(text, name, arguments, budget);
  if (name == "strip" || name == "lstrip" || name == "rstrip") return Strip(text, name, arguments, budget);
  if (name == "startswith" || name == "endswith") return StartsOrEnds(text, name, arguments);
  if (name == "splitlines") return SplitLines(text, arguments, budget);
  if (name == "find" || name == "count") return CallSearch(text, name, arguments, budget);
  if (name == "replace") {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"old", "new", "count"}, 2));
    if (!bound[0].Is(Kind::kString)) return WrongArgument(name, bound[0], "strings");
    if (!bound[1].Is(Kind::kString)) return WrongArgument(name, bound[1], "strings");
    return Replace(text, bound[0].str(), bound[1].str(), bound[2].IsInteger() ? bound[2].integer() : -1, budget);
  }
  if (name == "join") {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"iterable"}, 1));
    LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(bound[0], budget));
    Value joined = Value::String("");
    for (size_t i = 0; i < items.size(); ++i) {
      if (!items[i].Is(Kind::kString)) return WrongArgument(name, items[i], "strings");
      if (i > 0) {
        LH_ASSIGN_OR_RETURN(joined, Binary(Operator::kConcat, std::move(joined), Value::String(text), budget));
      }
      LH_ASSIGN_OR_RETURN(joined, Binary(Operator::kConcat, std::move(joined), items[i], budget));
    }
    return joined;
  }
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, name, {}));
  if (name == "isdigit") {
    const bool digits =
        !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    return Value::Bool(digits);
  }
  if (name == "upper") return NewString(Upper(text), budget);
  if (name == "lower") return NewString(Lower(text), budget);
  if (name == "title") return NewString(Title(text), budget);
  return NewString(Capitalize(text), budget);
}

absl::StatusOr<Value> CallDictMethod(const Dict& dict, const std::string& name, const Arguments& arguments,
                                     Budget* budget) {
  if (name == "get") {
    LH_ASSIGN_OR_RETURN(const auto bound, Bind(arguments, name, {"key", "default"}, 1));
    const Value* found = bound[0].Is(Kind::kString) ? dict.Find(bound[0].str()) : nullptr;
    if (found != nullptr) return *found;
    return bound[1].Is(Kind::kUndefined) ? Value::None() : bound[1];
  }
  LH_ASSIGN_OR_RETURN(const auto none, Bind(arguments, name, {}));
  std::vector<Value> out;
  for (const auto& [key, value] : dict.items()) {
    LH_RETURN_IF_ERROR(budget->Step());
    if (name == "values") {
      out.push_back(value);
      continue;
    }
    LH_ASSIGN_OR_RETURN(Value key_value, NewString(key, budget));
    if (name == "items") {
      LH_ASSIGN_OR_RETURN(key_value, NewList({key_value, value}, budget, true));
    }
    out.push_back(std::move(key_value));
  }
  return NewList(std::move(out), budget);
}

absl::StatusOr<Value> CallListMethod(const List& list, const std::string& name, const Arguments& arguments,
                                     Budget* budget) {
  const auto size = static_cast<int64_t>(list.items.size());
  int64_t range[2] = {0, size};
  std::vector<Value> bound;
  if (name == "count") {
    LH_ASSIGN_OR_RETURN(bound, Bind(arguments, name, {"value"}, 1));
  } else {
    LH_ASSIGN_OR_RETURN(bound, Bind(arguments, name, {"value", "start", "stop"}, 1));
    for (size_t i = 0; i < 2; ++i) {
      const Value& limit = bound[i + 1];
      if (limit.Is(Kind::kUndefined)) continue;
      if (!limit.IsInteger()) return WrongArgument(name, limit, "integers for start and stop");
      const int64_t from_end = limit.integer() < 0 ? size : 0;
      range[i] = std::clamp<int64_t>(limit.integer() + from_end, 0, size);
    }
  }
  int64_t count = 0;
  for (int64_t i = range[0]; i < range[1]; ++i) {
    LH_ASSIGN_OR_RETURN(const bool same, Equals(list.items[static_cast<size_t>(i)], bound[0], budget));
    if (same && name == "index") return Value::Int(i);
    count += same ? 1 : 0;
  }
  if (name == "index") return TemplateError("index(): the value is not in the list");
  return Value::Int(count);
}

template <size_t kCount>
bool IsAmong(const std::array<const char*, kCount>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

bool IsMethod(const Value& self, const std::string& name) {
  if (self.Is(Kind::kString)) return IsAmong(kStringMethods, name);
  if (self.Is(Kind::kList)) return IsAmong(kListMethods, name);
  return self.Is(Kind::kDict) && IsAmong(kDictMethods, name);
}

absl::StatusOr<Value> CallMethod(const Value& self, const std::string& name, const Arguments& arguments,
                                 Budget* budget) {
  if (self.Is(Kind::kString)) return CallStringMethod(self.str(), name, arguments, budget);
  if (self.Is(Kind::kList)) return CallListMethod(self.list(), name, arguments, budget);
  if (self.Is(Kind::kDict)) return CallDictMethod(self.dict(), name, arguments, budget);
  if (arguments.positional.empty()) return TemplateError("loop.cycle() needs at least one value");
  return arguments.positional[static_cast<size_t>(self.loop().index0) % arguments.positional.size()];
}

size_t Find(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  if (text.empty()) return std::string_view::npos;
  // memmem keeps linear time on texts made to be slow.
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  return found == nullptr ? std::string_view::npos : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

absl::StatusOr<Value> Replace(const std::string& text, const std::string& from, const std::string& to, int64_t count,
                              Budget* budget) {
  std::string out;
  size_t at = 0;
  for (int64_t n = 0; count < 0 || n < count; ++n) {
    size_t found = Find(text, from, at);
    if (from.empty() && found < text.size()) {
      // Python puts the new text before each character and at the end.
      found = at + static_cast<size_t>(DecodeAt(text, at).bytes);
      LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(to.size() + found - at)));
      out.append(to).append(text, at, found - at);
      at = found;
      continue;
    }
    if (found == std::string_view::npos) break;
    LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(to.size() + found - at)));
    out.append(text, at, found - at).append(to);
    at = found + from.size();
    if (from.empty()) break;
  }
  out.append(text, std::min(at, text.size()), std::string::npos);
  return NewString(std::move(out), budget);
}

}  // namespace longhaul::data::jinja
