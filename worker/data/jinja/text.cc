#include "worker/data/jinja/text.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/status_macros.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {
namespace {

bool Stripped(char32_t value, const std::string* chars) {
  if (chars == nullptr) return IsPythonSpace(value);
  for (size_t i = 0; i < chars->size();) {
    const CodePoint c = DecodeAt(*chars, i);
    if (c.value == value) return true;
    i += static_cast<size_t>(c.bytes);
  }
  return false;
}

std::string FromIcu(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

icu::UnicodeString ToIcu(std::string_view text) {
  return icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

// Text under construction that charges as it grows: shared parts can make a value's text far larger than the value.
class Writer {
 public:
  explicit Writer(Budget* budget) : budget_(budget) {}
  absl::Status Put(std::string_view text) {
    LH_RETURN_IF_ERROR(budget_->Bytes(static_cast<int64_t>(text.size())));
    LH_RETURN_IF_ERROR(budget_->Step());
    out_.append(text);
    return absl::OkStatus();
  }
  std::string Take() { return std::move(out_); }

 private:
  Budget* budget_;
  std::string out_;
};

std::string HexEscape(const char* prefix, uint32_t value, int digits) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = prefix;
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out.push_back(kHex[value >> shift & 15]);
  return out;
}

std::string StringRepr(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeAt(text, i);
    if (c.value == static_cast<char32_t>(quote) || c.value == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c.value));
    } else if (c.value == '\n') {
      out += "\\n";
    } else if (c.value == '\r') {
      out += "\\r";
    } else if (c.value == '\t') {
      out += "\\t";
    } else if (c.value == ' ' || u_isgraph(static_cast<UChar32>(c.value))) {
      out.append(text, i, static_cast<size_t>(c.bytes));
    } else if (c.value < 0x100) {
      out += HexEscape("\\x", c.value, 2);
    } else if (c.value < 0x10000) {
      out += HexEscape("\\u", c.value, 4);
    } else {
      out += HexEscape("\\U", c.value, 8);
    }
    i += static_cast<size_t>(c.bytes);
  }
  out.push_back(quote);
  return out;
}

absl::Status PutRepr(const Value& value, Writer* out);

absl::Status PutDictRepr(const Dict& dict, Writer* out) {
  LH_RETURN_IF_ERROR(out->Put("{"));
  bool first = true;
  for (const auto& [key, item] : dict.items()) {
    if (!first) LH_RETURN_IF_ERROR(out->Put(", "));
    first = false;
    LH_RETURN_IF_ERROR(out->Put(StringRepr(key)));
    LH_RETURN_IF_ERROR(out->Put(": "));
    LH_RETURN_IF_ERROR(PutRepr(item, out));
  }
  return out->Put("}");
}

absl::Status PutListRepr(const List& list, Writer* out) {
  LH_RETURN_IF_ERROR(out->Put(list.tuple ? "(" : "["));
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) LH_RETURN_IF_ERROR(out->Put(", "));
    LH_RETURN_IF_ERROR(PutRepr(list.items[i], out));
  }
  if (list.tuple && list.items.size() == 1) LH_RETURN_IF_ERROR(out->Put(","));
  return out->Put(list.tuple ? ")" : "]");
}

absl::Status PutRepr(const Value& value, Writer* out) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return out->Put("Undefined");
    case Kind::kNone:
      return out->Put("None");
    case Kind::kBool:
      return out->Put(value.boolean() ? "True" : "False");
    case Kind::kInt:
      return out->Put(std::to_string(value.integer()));
    case Kind::kFloat:
      return out->Put(FloatRepr(value.number()));
    case Kind::kString:
      return out->Put(StringRepr(value.str()));
    case Kind::kList:
      return PutListRepr(value.list(), out);
    case Kind::kDict:
      return PutDictRepr(value.dict(), out);
    case Kind::kNamespace:
    case Kind::kLoop:
    case Kind::kCallable:
      break;
  }
  return TemplateError(std::string("a ") + TypeName(value) + " has no text");
}

std::string JsonString(std::string_view text, bool ensure_ascii) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeAt(text, i);
    constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f";
    constexpr std::string_view kNames = "\"\\nrtbf";
    const size_t named = c.value < 0x80 ? kEscaped.find(static_cast<char>(c.value)) : std::string_view::npos;
    if (named != std::string_view::npos) {
      out.push_back('\\');
      out.push_back(kNames[named]);
    } else if (c.value < 0x20 || (ensure_ascii && c.value >= 0x7F && c.value < 0x10000 && c.value != 0x7F)) {
      out += HexEscape("\\u", c.value, 4);
    } else if (ensure_ascii && c.value >= 0x10000) {
      out += HexEscape("\\u", 0xD800 + ((c.value - 0x10000) >> 10), 4);
      out += HexEscape("\\u", 0xDC00 + ((c.value - 0x10000) & 0x3FF), 4);
    } else {
      out.append(text, i, static_cast<size_t>(c.bytes));
    }
    i += static_cast<size_t>(c.bytes);
  }
  out.push_back('"');
  return out;
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Writer* out) : style_(style), out_(out) {}

  absl::Status Put(const Value& value, int level) {
    switch (value.kind()) {
      case Kind::kNone:
        return out_->Put("null");
      case Kind::kBool:
        return out_->Put(value.boolean() ? "true" : "false");
      case Kind::kInt:
        return out_->Put(std::to_string(value.integer()));
      case Kind::kFloat:
        return out_->Put(JsonFloat(value.number()));
      case Kind::kString:
        return out_->Put(JsonString(value.str(), style_.ensure_ascii));
      case Kind::kList:
        return PutList(value.list(), level);
      case Kind::kDict:
        return PutDict(value.dict(), level);
      default:
        return TemplateError(std::string("tojson: a value of type ") + TypeName(value) + " is not JSON");
    }
  }

 private:
  static std::string JsonFloat(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return FloatRepr(value);
  }

  absl::Status NewLine(int level) {
    if (style_.indent < 0) return absl::OkStatus();
    return out_->Put("\n" + std::string(static_cast<size_t>(style_.indent) * static_cast<size_t>(level), ' '));
  }

  absl::Status PutList(const List& list, int level) {
    if (list.items.empty()) return out_->Put("[]");
    LH_RETURN_IF_ERROR(out_->Put("["));
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) LH_RETURN_IF_ERROR(out_->Put(style_.item_separator));
      LH_RETURN_IF_ERROR(NewLine(level + 1));
      LH_RETURN_IF_ERROR(Put(list.items[i], level + 1));
    }
    LH_RETURN_IF_ERROR(NewLine(level));
    return out_->Put("]");
  }

  absl::Status PutDict(const Dict& dict, int level) {
    if (dict.items().empty()) return out_->Put("{}");
    std::vector<const std::pair<std::string, Value>*> items;
    for (const auto& item : dict.items()) items.push_back(&item);
    if (style_.sort_keys) {
      std::sort(items.begin(), items.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    LH_RETURN_IF_ERROR(out_->Put("{"));
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) LH_RETURN_IF_ERROR(out_->Put(style_.item_separator));
      LH_RETURN_IF_ERROR(NewLine(level + 1));
      LH_RETURN_IF_ERROR(out_->Put(JsonString(items[i]->first, style_.ensure_ascii)));
      LH_RETURN_IF_ERROR(out_->Put(style_.key_separator));
      LH_RETURN_IF_ERROR(Put(items[i]->second, level + 1));
    }
    LH_RETURN_IF_ERROR(NewLine(level));
    return out_->Put("}");
  }

  const JsonStyle& style_;
  Writer* out_;
};

}  // namespace

bool IsPythonSpace(char32_t value) {
  if (value < 0x80) return value == ' ' || value - 9 < 5 || value - 0x1C < 4;
  return ClassOf(value) == CharClass::kSpace;
}

bool IsPythonWord(char32_t value) {
  if (value == '_' || ClassOf(value) == CharClass::kLetter) return true;
  return u_getIntPropertyValue(static_cast<UChar32>(value), UCHAR_NUMERIC_TYPE) != U_NT_NONE;
}

std::string_view StripBegin(std::string_view text, const std::string* chars) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint c = DecodeAt(text, at);
    if (!Stripped(c.value, chars)) break;
    at += static_cast<size_t>(c.bytes);
  }
  return text.substr(at);
}

std::string_view StripEnd(std::string_view text, const std::string* chars) {
  size_t end = text.size();
  while (end > 0) {
    const CodePoint c = DecodeBefore(text, end);
    if (!Stripped(c.value, chars)) break;
    end -= static_cast<size_t>(c.bytes);
  }
  return text.substr(0, end);
}

int64_t CodePointCount(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

std::vector<size_t> CodePointOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(text.size());
  return offsets;
}

std::string Upper(std::string_view text) { return FromIcu(ToIcu(text).toUpper(icu::Locale::getRoot())); }
std::string Lower(std::string_view text) { return FromIcu(ToIcu(text).toLower(icu::Locale::getRoot())); }

std::string Capitalize(std::string_view text) {
  if (text.empty()) return "";
  const auto first_bytes = static_cast<size_t>(DecodeAt(text, 0).bytes);
  std::string out;
  AppendUtf8(static_cast<char32_t>(u_totitle(static_cast<UChar32>(DecodeAt(text, 0).value))), &out);
  return out + Lower(text.substr(first_bytes));
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string text(buffer, end);  // d.ddde[+-]xx
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  std::string sign, digits;
  for (char c : text.substr(0, e)) {
    if (c == '-') sign = "-";
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  const auto count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    std::string out = sign + digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    const std::string power = std::to_string(std::abs(exponent));
    return out + (exponent < 0 ? "e-" : "e+") + (power.size() < 2 ? "0" + power : power);
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) return sign + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  const auto point = static_cast<size_t>(exponent + 1);
  return sign + digits.substr(0, point) + "." + digits.substr(point);
}

absl::StatusOr<std::string> ToStr(const Value& value, Budget* budget) {
  if (value.Is(Kind::kString)) return value.str();
  if (value.Is(Kind::kUndefined)) return std::string();
  return Repr(value, budget);
}

absl::StatusOr<std::string> Repr(const Value& value, Budget* budget) {
  Writer writer(budget);
  LH_RETURN_IF_ERROR(PutRepr(value, &writer));
  return writer.Take();
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, Budget* budget) {
  Writer writer(budget);
  LH_RETURN_IF_ERROR(JsonWriter(style, &writer).Put(value, 0));
  return writer.Take();
}

}  // namespace longhaul::data::jinja
