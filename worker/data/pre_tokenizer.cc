#include "worker/data/pre_tokenizer.h"

#include <cstddef>

#include "worker/data/unicode.h"

namespace longhaul::data {
namespace {

// A cursor over one piece. Class past the end is kNone, which equals no class of a character.
struct Cursor {
  enum : uint8_t { kNone = 255 };
  std::string_view text;
  size_t at;

  bool done() const { return at >= text.size(); }
  char32_t value() const { return DecodeAt(text, at).value; }
  uint8_t cls() const { return done() ? uint8_t{kNone} : static_cast<uint8_t>(ClassOf(value())); }
  bool Is(CharClass c) const { return cls() == static_cast<uint8_t>(c); }
  void Next() { at += static_cast<size_t>(DecodeAt(text, at).bytes); }
  void SkipRun(CharClass c) {
    while (Is(c)) Next();
  }
};

bool IsNewline(char32_t value) { return value == '\r' || value == '\n'; }

char32_t FoldedAt(std::string_view text, size_t offset, bool fold, int* bytes) {
  const CodePoint c = DecodeAt(text, offset);
  *bytes = c.bytes;
  if (!fold) return c.value;
  if (c.value == 0x17F) return 's';  // U+017F folds to s under (?i)
  return c.value - 'A' < 26 ? c.value | 0x20 : c.value;
}

// The end of 's|'t|'re|'ve|'m|'ll|'d at `begin`, or `begin`.
size_t Contraction(std::string_view text, size_t begin, bool fold) {
  if (text[begin] != '\'' || begin + 1 >= text.size()) return begin;
  int first_bytes = 0;
  const char32_t first = FoldedAt(text, begin + 1, fold, &first_bytes);
  const size_t after = begin + 1 + static_cast<size_t>(first_bytes);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return after;
  if (after >= text.size()) return begin;
  int second_bytes = 0;
  const char32_t second = FoldedAt(text, after, fold, &second_bytes);
  const bool matches =
      (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
  return matches ? after + static_cast<size_t>(second_bytes) : begin;
}

// \s+(?!\S)|\s+ : a run that something follows gives its last character back, unless it is the only one.
size_t WhitespaceRun(std::string_view text, size_t begin) {
  Cursor c{text, begin};
  size_t last = begin;
  while (c.Is(CharClass::kSpace)) {
    last = c.at;
    c.Next();
  }
  return c.done() || last == begin ? c.at : last;
}

size_t NextGpt2(std::string_view text, size_t begin) {
  if (const size_t end = Contraction(text, begin, false); end > begin) return end;
  Cursor c{text, begin};
  if (text[begin] == ' ' && begin + 1 < text.size()) ++c.at;
  if (c.Is(CharClass::kSpace)) return WhitespaceRun(text, begin);
  const auto cls = static_cast<CharClass>(c.cls());
  c.SkipRun(cls);
  return c.at;
}

// `digits`: how many \p{N} a word may hold.
size_t NextLlama3(std::string_view text, size_t begin, int digits) {
  if (const size_t end = Contraction(text, begin, true); end > begin) return end;
  Cursor c{text, begin};
  const char32_t first = c.value();
  const auto cls = static_cast<CharClass>(c.cls());
  if (cls == CharClass::kLetter) {
    c.SkipRun(CharClass::kLetter);
    return c.at;
  }
  if (cls == CharClass::kNumber) {
    for (int i = 0; i < digits && c.Is(CharClass::kNumber); ++i) c.Next();
    return c.at;
  }
  c.Next();
  if (!IsNewline(first) && c.Is(CharClass::kLetter)) {
    c.SkipRun(CharClass::kLetter);
    return c.at;
  }
  if (cls == CharClass::kOther || (first == ' ' && c.Is(CharClass::kOther))) {
    c.SkipRun(CharClass::kOther);
    while (!c.done() && IsNewline(c.value())) c.Next();
    return c.at;
  }
  // \s*[\r\n]+ : through the last newline of the whitespace run.
  size_t after_newline = IsNewline(first) ? c.at : 0;
  while (c.Is(CharClass::kSpace)) {
    const bool newline = IsNewline(c.value());
    c.Next();
    if (newline) after_newline = c.at;
  }
  return after_newline > 0 ? after_newline : WhitespaceRun(text, begin);
}

size_t NextDigits(std::string_view text, size_t begin, bool individual) {
  Cursor c{text, begin};
  const bool number = c.Is(CharClass::kNumber);
  c.Next();
  if (number && individual) return c.at;
  while (!c.done() && c.Is(CharClass::kNumber) == number) c.Next();
  return c.at;
}

size_t NextWord(PreTokenizerStep step, std::string_view piece, size_t begin) {
  switch (step) {
    case PreTokenizerStep::kDigitsIndividual:
      return NextDigits(piece, begin, true);
    case PreTokenizerStep::kDigitsRuns:
      return NextDigits(piece, begin, false);
    case PreTokenizerStep::kGpt2:
      return NextGpt2(piece, begin);
    case PreTokenizerStep::kLlama3:
      return NextLlama3(piece, begin, 3);
    case PreTokenizerStep::kQwen2:
      return NextLlama3(piece, begin, 1);
  }
  return piece.size();
}

}  // namespace

const char* PreTokenizerRegex(PreTokenizerStep step) {
  switch (step) {
    case PreTokenizerStep::kGpt2:
      return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    case PreTokenizerStep::kLlama3:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    case PreTokenizerStep::kQwen2:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    case PreTokenizerStep::kDigitsIndividual:
    case PreTokenizerStep::kDigitsRuns:
      break;
  }
  return "";
}

void PreTokenize(const std::vector<PreTokenizerStep>& steps, std::string_view text, std::vector<size_t>* ends,
                 std::vector<size_t>* scratch) {
  ends->clear();
  if (text.empty()) return;
  ends->push_back(text.size());
  for (PreTokenizerStep step : steps) {
    scratch->swap(*ends);
    ends->clear();
    size_t begin = 0;
    for (size_t end : *scratch) {
      // A lookahead sees the end of its own word, not what follows it in the text.
      const std::string_view piece = text.substr(begin, end - begin);
      for (size_t at = 0; at < piece.size();) {
        at = NextWord(step, piece, at);
        ends->push_back(begin + at);
      }
      begin = end;
    }
  }
}

}  // namespace longhaul::data
