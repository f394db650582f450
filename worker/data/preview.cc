#include "worker/data/preview.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <vector>

#include "base/env.h"
#include "base/format.h"
#include "base/status_macros.h"

namespace longhaul::data {
namespace {

constexpr size_t kCutTokensShown = 200;

Json ErrorToJson(const LineError& error) {
  return {{"line", error.line}, {"field", error.field}, {"reason", error.reason}};
}

Json LineToJson(const LineReader::Line& line, int64_t number, const Tokenizer& tokenizer) {
  std::vector<int32_t> trained;
  for (size_t i = 0; i < line.example.ids.size(); ++i) {
    if (line.example.train[i] != 0) trained.push_back(line.example.ids[i]);
  }
  const int64_t kept = static_cast<int64_t>(line.example.ids.size());
  return {{"line", number},
          {"text", line.text},
          {"tokens", line.full_tokens},
          {"cut", line.full_tokens - kept},
          {"cut_ids", line.cut_ids},
          {"cut_text", tokenizer.Decode(line.cut_ids, /*skip_special=*/false)},
          {"dropped", !line.trains},
          {"ids", line.example.ids},
          {"train", line.example.train},
          {"trained_text", tokenizer.Decode(trained, /*skip_special=*/false)}};
}

// Runs of tokens with one mask value, decoded whole so that characters of several tokens stay together.
std::string MarkedText(const Json& example, const Tokenizer& tokenizer, const PreviewStyle& style) {
  const std::string on = style.color ? "\x1b[32m" : "【";
  const std::string off = style.color ? "\x1b[0m" : "】";
  const auto ids = example["ids"].get<std::vector<int32_t>>();
  const auto train = example["train"].get<std::vector<uint8_t>>();
  std::string text;
  for (size_t begin = 0; begin < ids.size();) {
    size_t end = begin;
    while (end < ids.size() && train[end] == train[begin]) ++end;
    const std::vector<int32_t> run(ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end));
    const std::string piece = tokenizer.Decode(run, /*skip_special=*/false);
    text += train[begin] != 0 ? on + piece + off : piece;
    begin = end;
  }
  return text;
}

std::string CutText(const Json& example, const Tokenizer& tokenizer) {
  auto ids = example["cut_ids"].get<std::vector<int32_t>>();
  if (ids.empty()) return "";
  const size_t more = ids.size() - std::min(ids.size(), kCutTokensShown);
  ids.resize(ids.size() - more);
  std::string text = "--- cut from here ---\n" + tokenizer.Decode(ids, /*skip_special=*/false) + "\n";
  if (more > 0) text += "... " + FormatCount(static_cast<int64_t>(more)) + " more tokens (-o json has all)\n";
  return text;
}

// A token alone may be a part of a character: shown as a JSON string, where it cannot upset a terminal.
std::string TokenTable(const Json& example, const Tokenizer& tokenizer) {
  auto ids = example["ids"].get<std::vector<int32_t>>();
  const auto train = example["train"].get<std::vector<uint8_t>>();
  const auto cut = example["cut_ids"].get<std::vector<int32_t>>();
  ids.insert(ids.end(), cut.begin(), cut.end());
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    char place[64];
    std::snprintf(place, sizeof(place), "%7zu %8d  %-5s  ", i, ids[i],
                  i >= train.size() ? "cut"
                  : train[i] != 0   ? "train"
                                    : "-");
    const Json piece = tokenizer.Decode({ids[i]}, /*skip_special=*/false);
    text += place + piece.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return text;
}

}  // namespace

Json ReportToJson(const DatasetReport& report) {
  Json histogram = Json::array();
  for (const LengthBucket& bucket : report.length_histogram) {
    histogram.push_back({{"up_to_tokens", bucket.up_to_tokens}, {"examples", bucket.examples}});
  }
  return {
      {"examples", report.examples},   {"tokens", report.tokens},          {"trained_tokens", report.trained_tokens},
      {"dropped", report.dropped},     {"truncated", report.truncated},    {"longest_tokens", report.longest_tokens},
      {"length_histogram", histogram}, {"error_count", report.error_count}};
}

absl::StatusOr<Json> PreviewDataset(const std::string& path, int64_t count, const Tokenizer& tokenizer,
                                    const ChatTemplate* chat, const DatasetOptions& options) {
  LH_ASSIGN_OR_RETURN(const Dataset dataset, LoadDataset(path, tokenizer, chat, options));
  Json preview = {{"examples", Json::array()}, {"errors", Json::array()}, {"report", ReportToJson(dataset.report)}};
  for (const LineError& error : dataset.report.errors) preview["errors"].push_back(ErrorToJson(error));

  LH_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  LineReader reader(&tokenizer, chat, options);
  std::string_view rest = file.view();
  for (int64_t number = 1; !rest.empty() && static_cast<int64_t>(preview["examples"].size()) < count; ++number) {
    const size_t newline = rest.find('\n');
    const std::string_view text = rest.substr(0, newline);
    rest.remove_prefix(newline == std::string_view::npos ? rest.size() : newline + 1);
    LineReader::Line line;
    LineError error;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos || !reader.Read(text, &line, &error)) continue;
    preview["examples"].push_back(LineToJson(line, number, tokenizer));
  }
  return preview;
}

std::string PreviewText(const Json& preview, const Tokenizer& tokenizer, const PreviewStyle& style) {
  std::string text;
  for (const Json& example : preview["examples"]) {
    text += "line " + example["line"].dump() + ": " + FormatCount(example["tokens"].get<int64_t>()) + " tokens";
    if (example["cut"] != 0) text += ", the last " + FormatCount(example["cut"].get<int64_t>()) + " are cut";
    if (example["dropped"] == true) text += ", dropped: nothing left to train on";
    text += "\n" + MarkedText(example, tokenizer, style) + "\n" + CutText(example, tokenizer);
    if (style.ids) text += TokenTable(example, tokenizer);
    text += "\n";
  }
  for (const Json& error : preview["errors"]) {
    const std::string field = error["field"].get<std::string>();
    text += "line " + error["line"].dump() + ": " + (field.empty() ? "" : field + " ") +
            error["reason"].get<std::string>() + "\n";
  }
  const Json& report = preview["report"];
  text +=
      FormatCount(report["examples"].get<int64_t>()) + " examples, " + FormatCount(report["tokens"].get<int64_t>()) +
      " tokens, " + FormatCount(report["trained_tokens"].get<int64_t>()) + " trained; longest " +
      FormatCount(report["longest_tokens"].get<int64_t>()) + "; " + FormatCount(report["truncated"].get<int64_t>()) +
      " truncated, " + FormatCount(report["dropped"].get<int64_t>()) + " dropped, " +
      FormatCount(report["error_count"].get<int64_t>()) + " bad lines\n";
  return text;
}

}  // namespace longhaul::data
