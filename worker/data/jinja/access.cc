// Attributes, subscripts, slices and iteration (ops.h).
#include <algorithm>

#include "base/status_macros.h"
#include "worker/data/jinja/methods.h"
#include "worker/data/jinja/ops.h"
#include "worker/data/jinja/text.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

Value LoopAttribute(const LoopState& loop, const std::string& name) {
  const auto length = static_cast<int64_t>(loop.items->size());
  const int64_t i = loop.index0;
  if (name == "index") return Value::Int(i + 1);
  if (name == "index0") return Value::Int(i);
  if (name == "revindex") return Value::Int(length - i);
  if (name == "revindex0") return Value::Int(length - i - 1);
  if (name == "first") return Value::Bool(i == 0);
  if (name == "last") return Value::Bool(i == length - 1);
  if (name == "length") return Value::Int(length);
  if (name == "previtem") return i > 0 ? (*loop.items)[static_cast<size_t>(i - 1)] : Value::Undefined("loop.previtem");
  if (name == "nextitem") {
    return i + 1 < length ? (*loop.items)[static_cast<size_t>(i + 1)] : Value::Undefined("loop.nextitem");
  }
  return Value::Undefined("loop." + name);
}

Value Method(const Value& self, const std::string& name) {
  auto callable = std::make_shared<Callable>();
  callable->type = Callable::Type::kMethod;
  callable->name = name;
  callable->self = self;
  return Value::OfCallable(std::move(callable));
}

// The character at code point `index` (negative counts from the end); undefined outside.
absl::StatusOr<Value> CharacterAt(const std::string& text, int64_t index, Budget* budget) {
  LH_RETURN_IF_ERROR(budget->Step(static_cast<int64_t>(text.size() / 64)));
  const int64_t count = CodePointCount(text);
  if (index < 0) index += count;
  if (index < 0 || index >= count) return Value::Undefined("a character of a string");
  size_t at = 0;
  if (count == static_cast<int64_t>(text.size())) {
    at = static_cast<size_t>(index);
  } else {
    for (int64_t i = 0; i < index; ++i) at += static_cast<size_t>(DecodeAt(text, at).bytes);
  }
  return NewString(text.substr(at, static_cast<size_t>(DecodeAt(text, at).bytes)), budget);
}

// The indices that a Python slice takes.
absl::StatusOr<std::vector<int64_t>> SliceIndices(int64_t length, const Value& start, const Value& stop,
                                                  const Value& step, Budget* budget) {
  auto absent = [](const Value& v) { return v.Is(Kind::kUndefined) || v.Is(Kind::kNone); };
  for (const Value* v : {&start, &stop, &step}) {
    if (!absent(*v) && !v->IsInteger()) return TemplateError("slice bounds must be integers");
  }
  const int64_t by = absent(step) ? 1 : step.integer();
  if (by == 0) return TemplateError("slice step cannot be zero");
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
  auto clamp = [&](const Value& v, int64_t otherwise) {
    if (absent(v)) return otherwise;
    int64_t i = v.integer();
    if (i < 0) i = i < -length ? low : i + length;
    return std::clamp(i, low, high);
  };
  int64_t from = clamp(start, by > 0 ? low : high);
  const int64_t to = clamp(stop, by > 0 ? high : low);
  std::vector<int64_t> indices;
  LH_RETURN_IF_ERROR(budget->Bytes(8 * std::max<int64_t>(0, by > 0 ? to - from : from - to)));
  while (by > 0 ? from < to : from > to) {
    indices.push_back(from);
    if (__builtin_add_overflow(from, by, &from)) break;
  }
  return indices;
}

}  // namespace

absl::StatusOr<Value> GetAttribute(const Value& value, const std::string& name) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return TemplateError("'" + value.undefined_name() + "' is undefined");
    case Kind::kLoop:
      if (name == "cycle") return Method(value, name);
      return LoopAttribute(value.loop(), name);
    case Kind::kDict:
    case Kind::kList:
    case Kind::kString:
      if (IsMethod(value, name)) return Method(value, name);
      break;
    default:
      break;
  }
  if (value.Is(Kind::kDict) || value.Is(Kind::kNamespace)) {
    if (const Value* found = value.dict().Find(name)) return *found;
  }
  return Value::Undefined(name);
}

absl::StatusOr<Value> GetItem(const Value& value, const Value& key, Budget* budget) {
  if (value.Is(Kind::kUndefined)) return TemplateError("'" + value.undefined_name() + "' is undefined");
  if (key.Is(Kind::kString)) {
    if (value.Is(Kind::kDict) || value.Is(Kind::kNamespace)) {
      if (const Value* found = value.dict().Find(key.str())) return *found;
    }
    return GetAttribute(value, key.str());
  }
  if (key.IsInteger() && value.Is(Kind::kList)) {
    const auto count = static_cast<int64_t>(value.list().items.size());
    const int64_t index = key.integer() < 0 ? key.integer() + count : key.integer();
    if (index >= 0 && index < count) return value.list().items[static_cast<size_t>(index)];
    return Value::Undefined("list item " + std::to_string(key.integer()));
  }
  if (key.IsInteger() && value.Is(Kind::kString)) return CharacterAt(value.str(), key.integer(), budget);
  return Value::Undefined(std::string("item of a ") + TypeName(value));
}

absl::StatusOr<Value> Slice(const Value& value, const Value& start, const Value& stop, const Value& step,
                            Budget* budget) {
  if (value.Is(Kind::kUndefined)) return TemplateError("'" + value.undefined_name() + "' is undefined");
  if (value.Is(Kind::kList)) {
    const auto& items = value.list().items;
    LH_ASSIGN_OR_RETURN(const std::vector<int64_t> indices,
                        SliceIndices(static_cast<int64_t>(items.size()), start, stop, step, budget));
    std::vector<Value> out;
    out.reserve(indices.size());
    for (int64_t i : indices) out.push_back(items[static_cast<size_t>(i)]);
    return NewList(std::move(out), budget, value.list().tuple);
  }
  if (!value.Is(Kind::kString)) return TemplateError(std::string("a ") + TypeName(value) + " cannot be sliced");
  LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(value.str().size() * 8)));
  const std::vector<size_t> offsets = CodePointOffsets(value.str());
  LH_ASSIGN_OR_RETURN(const std::vector<int64_t> indices,
                      SliceIndices(static_cast<int64_t>(offsets.size()) - 1, start, stop, step, budget));
  std::string out;
  for (int64_t i : indices) {
    const size_t begin = offsets[static_cast<size_t>(i)];
    out.append(value.str(), begin, offsets[static_cast<size_t>(i) + 1] - begin);
  }
  return NewString(std::move(out), budget);
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget) {
  std::vector<Value> out;
  switch (value.kind()) {
    case Kind::kUndefined:
      return out;
    case Kind::kList:
      LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(value.list().items.size() * sizeof(Value))));
      return value.list().items;
    case Kind::kDict:
      LH_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(value.dict().items().size() * sizeof(Value))));
      for (const auto& item : value.dict().items()) out.push_back(Value::String(item.first));
      return out;
    case Kind::kString: {
      const std::string& text = value.str();
      LH_RETURN_IF_ERROR(budget->Bytes(CodePointCount(text) * static_cast<int64_t>(2 * sizeof(Value))));
      for (size_t at = 0; at < text.size();) {
        const auto bytes = static_cast<size_t>(DecodeAt(text, at).bytes);
        out.push_back(Value::String(text.substr(at, bytes)));
        at += bytes;
      }
      return out;
    }
    default:
      return TemplateError(std::string("a ") + TypeName(value) + " cannot be looped over");
  }
}

}  // namespace longhaul::data::jinja
