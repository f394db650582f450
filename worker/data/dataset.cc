#include "worker/data/dataset.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/random.h"
#include "base/status_macros.h"

namespace longhaul::data {
namespace {

bool Bad(LineError* error, std::string field, std::string reason) {
  error->field = std::move(field);
  error->reason = std::move(reason);
  return false;
}

std::string TypeOf(const Json& value) {
  if (value.is_null()) return "null";
  const std::string name = value.type_name();
  return (name == "array" || name == "object" ? "an " : "a ") + name;
}

bool KnownRole(const std::string& role) {
  return role == "system" || role == "developer" || role == "user" || role == "assistant" || role == "tool" ||
         role == "function";
}

// Checks one message; normalises what templates do not expect. *trains: whether it is an answer that trains.
bool CheckMessage(const std::string& field, Json* message, bool* trains, LineError* error) {
  if (!message->is_object()) return Bad(error, field, "is " + TypeOf(*message) + "; must be an object");
  const auto role = message->find("role");
  if (role == message->end()) return Bad(error, field + ".role", "is missing");
  if (!role->is_string() || !KnownRole(role->get<std::string>())) {
    return Bad(error, field + ".role",
               "is " + role->dump() + "; must be system, developer, user, assistant, tool or function");
  }
  const bool assistant = *role == "assistant";
  const auto calls = message->find("tool_calls");
  const bool has_calls = calls != message->end() && calls->is_array() && !calls->empty();
  auto content = message->find("content");
  if (content == message->end() || content->is_null()) {
    if (!has_calls) return Bad(error, field + ".content", "is missing");
    (*message)["content"] = "";
  } else if (content->is_array()) {
    std::string joined;
    for (size_t i = 0; i < content->size(); ++i) {
      const Json& part = (*content)[i];
      if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
          !part["text"].is_string()) {
        return Bad(error, field + ".content[" + std::to_string(i) + "]", "must be {\"type\": \"text\", \"text\": ...}");
      }
      joined += part["text"].get<std::string>();
    }
    *content = joined;
  } else if (!content->is_string()) {
    return Bad(error, field + ".content", "is " + TypeOf(*content) + "; must be a string");
  }
  // Arguments come as a JSON string; many templates want them decoded.
  if (has_calls) {
    for (Json& call : *message->find("tool_calls")) {
      if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
      Json& function = call["function"];
      if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
      absl::StatusOr<Json> decoded =
          ParseJson(function["arguments"].get<std::string>(), limits::kMaxDatasetLineJsonValues);
      if (decoded.ok()) function["arguments"] = *std::move(decoded);
    }
  }
  *trains = assistant;
  const auto weight = message->find("weight");
  if (weight != message->end()) {
    if (*weight != 0 && *weight != 1) return Bad(error, field + ".weight", "is " + weight->dump() + "; must be 0 or 1");
    if (!assistant) return Bad(error, field + ".weight", "is only for assistant messages");
    *trains = *weight == 1;
    message->erase("weight");
  }
  return true;
}

// What follows an answer's end-of-turn token inside its span (a newline, in most templates) is the template's, not the
// model's: the mask ends with the last special token where only white space follows.
void EndAtTurn(const Tokenizer& tokenizer, const Encoding& encoding, size_t begin, size_t* end) {
  for (size_t i = *end; i > begin; --i) {
    const int32_t id = encoding.ids[i - 1];
    if (tokenizer.IsSpecial(id)) {
      *end = i;
      return;
    }
    for (char c : tokenizer.TokenBytes(id)) {
      if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    }
  }
}

void MarkTrained(const Tokenizer& tokenizer, const Encoding& encoding,
                 const std::vector<std::pair<int64_t, int64_t>>& spans, std::vector<uint8_t>* train) {
  size_t token = 0;
  for (const auto& [span_begin, span_end] : spans) {
    // A token belongs to the span where it ends: a header's last token never does.
    while (token < encoding.ids.size() && encoding.spans[token].end <= span_begin) ++token;
    const size_t begin = token;
    while (token < encoding.ids.size() && encoding.spans[token].end <= span_end) ++token;
    size_t end = token;
    EndAtTurn(tokenizer, encoding, begin, &end);
    std::fill(train->begin() + static_cast<int64_t>(begin), train->begin() + static_cast<int64_t>(end), uint8_t{1});
  }
}

void AddToReport(const LineReader::Line& line, DatasetReport* report) {
  const int64_t tokens = static_cast<int64_t>(line.example.ids.size());
  ++report->examples;
  report->tokens += tokens;
  report->trained_tokens += CountTargets(line.example);
  report->longest_tokens = std::max(report->longest_tokens, tokens);
  int64_t bucket = 1;
  while (bucket < tokens) bucket *= 2;
  auto at = std::lower_bound(report->length_histogram.begin(), report->length_histogram.end(), bucket,
                             [](const LengthBucket& b, int64_t value) { return b.up_to_tokens < value; });
  if (at == report->length_histogram.end() || at->up_to_tokens != bucket) {
    at = report->length_histogram.insert(at, {bucket, 0});
  }
  ++at->examples;
}

LineFormat FormatOf(const Json& object) {
  if (object.contains("messages")) return LineFormat::kMessages;
  if (object.contains("text")) return LineFormat::kText;
  return LineFormat::kAuto;
}

}  // namespace

int64_t CountTargets(const Example& example) {
  int64_t targets = 0;
  for (size_t i = 1; i < example.train.size(); ++i) targets += example.train[i];
  return targets;
}

bool LineReader::Read(std::string_view json_line, Line* line, LineError* error) {
  if (static_cast<int64_t>(json_line.size()) > limits::kMaxDatasetLineBytes) {
    return Bad(error, "",
               "has " + std::to_string(json_line.size()) + " bytes; the limit is " +
                   std::to_string(limits::kMaxDatasetLineBytes));
  }
  const absl::StatusOr<Json> object = ParseJson(json_line, limits::kMaxDatasetLineJsonValues);
  if (!object.ok()) return Bad(error, "", std::string(object.status().message()));
  if (!object->is_object()) return Bad(error, "", "is " + TypeOf(*object) + "; must be an object");
  LineFormat format = FormatOf(*object);
  if (format == LineFormat::kAuto) return Bad(error, "", "has neither \"messages\" nor \"text\"");
  if (options_.format != LineFormat::kAuto && format != options_.format) {
    // A file is of one format: one with both fields is read as that.
    const char* wanted = options_.format == LineFormat::kMessages ? "messages" : "text";
    if (!object->contains(wanted)) return Bad(error, wanted, "is missing");
    format = options_.format;
  }
  const bool good =
      format == LineFormat::kMessages ? ReadMessages(*object, line, error) : ReadText(*object, line, error);
  if (good) options_.format = format;  // a bad line says nothing about the file
  return good;
}

bool LineReader::ReadMessages(const Json& object, Line* line, LineError* error) {
  if (chat_ == nullptr) return Bad(error, "messages", "need a chat template, and this model has none; use \"text\"");
  Json messages = object["messages"];
  if (!messages.is_array() || messages.empty())
    return Bad(error, "messages", "must be an array with at least one message");
  if (messages.size() > static_cast<size_t>(limits::kMaxMessagesPerExample)) {
    return Bad(error, "messages",
               "has " + std::to_string(messages.size()) + " messages; the limit is " +
                   std::to_string(limits::kMaxMessagesPerExample));
  }
  std::vector<bool> trains(messages.size());
  bool any_answer = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    bool message_trains = false;
    if (!CheckMessage("messages[" + std::to_string(i) + "]", &messages[i], &message_trains, error)) return false;
    trains[i] = message_trains;
    any_answer |= messages[i]["role"] == "assistant";
  }
  if (!any_answer) return Bad(error, "messages", "has no assistant message: nothing to train on");
  const auto tools = object.find("tools");
  const Json no_tools;
  absl::StatusOr<RenderedChat> chat =
      chat_->RenderForTraining(messages, tools == object.end() ? no_tools : *tools, trains);
  if (!chat.ok()) return Bad(error, "messages", std::string(chat.status().message()));
  absl::StatusOr<Encoding> encoding = tokenizer_->EncodeWithSpans(chat->text, {}, &scratch_);
  if (!encoding.ok()) return Bad(error, "messages", std::string(encoding.status().message()));
  std::vector<uint8_t> train(encoding->ids.size(), options_.train_on_responses_only ? 0 : 1);
  if (options_.train_on_responses_only) MarkTrained(*tokenizer_, *encoding, chat->trained, &train);
  line->text = std::move(chat->text);
  Finish(*std::move(encoding), std::move(train), line);
  return true;
}

bool LineReader::ReadText(const Json& object, Line* line, LineError* error) {
  const Json& text = object["text"];
  if (!text.is_string()) return Bad(error, "text", "is " + TypeOf(text) + "; must be a string");
  line->text = text.get<std::string>();
  // Raw text is no template: what looks like a special token in it still is one, as in Hugging Face.
  absl::StatusOr<Encoding> encoding =
      tokenizer_->EncodeWithSpans(line->text, {.add_special = true, .parse_special = true}, &scratch_);
  if (!encoding.ok()) return Bad(error, "text", std::string(encoding.status().message()));
  const int32_t eos = tokenizer_->eos_id();
  if (eos >= 0 && (encoding->ids.empty() || encoding->ids.back() != eos)) {
    encoding->ids.push_back(eos);
    const int64_t end = static_cast<int64_t>(line->text.size());
    encoding->spans.push_back({end, end});
  }
  std::vector<uint8_t> train(encoding->ids.size(), 1);
  Finish(*std::move(encoding), std::move(train), line);
  return true;
}

void LineReader::Finish(Encoding encoding, std::vector<uint8_t> train, Line* line) {
  line->full_tokens = static_cast<int64_t>(encoding.ids.size());
  const size_t kept = static_cast<size_t>(std::min(line->full_tokens, options_.max_sequence_length));
  line->cut_ids.assign(encoding.ids.begin() + static_cast<int64_t>(kept), encoding.ids.end());
  encoding.ids.resize(kept);
  train.resize(kept);
  encoding.ids.shrink_to_fit();
  train.shrink_to_fit();
  line->example.ids = std::move(encoding.ids);
  line->example.train = std::move(train);
  line->trains = CountTargets(line->example) > 0;
}

absl::StatusOr<Dataset> LoadDataset(const std::string& path, const Tokenizer& tokenizer, const ChatTemplate* chat,
                                    const DatasetOptions& options) {
  LH_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  LineReader reader(&tokenizer, chat, options);
  Dataset dataset;
  DatasetReport& report = dataset.report;
  std::string_view rest = file.view();
  if (rest.substr(0, 3) == "\xEF\xBB\xBF") rest.remove_prefix(3);
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t newline = rest.find('\n');
    const std::string_view text = rest.substr(0, newline);
    rest.remove_prefix(newline == std::string_view::npos ? rest.size() : newline + 1);
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (options.cancelled && options.cancelled())
      return absl::CancelledError("the reading of " + path + " was cancelled");
    LineReader::Line line;
    LineError error;
    if (!reader.Read(text, &line, &error)) {
      error.line = number;
      if (report.error_count++ < limits::kMaxDatasetErrorsReported) report.errors.push_back(std::move(error));
      continue;
    }
    if (line.full_tokens > static_cast<int64_t>(line.example.ids.size())) ++report.truncated;
    if (!line.trains) {
      ++report.dropped;
      continue;
    }
    line.example.line = number;
    AddToReport(line, &report);
    dataset.examples.push_back(std::move(line.example));
  }
  return dataset;
}

absl::StatusOr<std::vector<Example>> HoldOut(int64_t count, uint64_t seed, std::vector<Example>* dataset) {
  const int64_t total = static_cast<int64_t>(dataset->size());
  if (count >= total) {
    return InvalidField("spec.hyperparameters.eval_examples",
                        "is " + std::to_string(count) + "; the dataset has " + std::to_string(total) +
                            " examples, and at least one must be left to train on");
  }
  const std::vector<int64_t> order = EpochOrder(total, seed, 0);
  std::vector<bool> held(dataset->size());
  for (int64_t i = 0; i < count; ++i) held[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
  std::vector<Example> eval;
  std::vector<Example> train;
  for (size_t i = 0; i < dataset->size(); ++i) (held[i] ? eval : train).push_back(std::move((*dataset)[i]));
  *dataset = std::move(train);
  return eval;
}

}  // namespace longhaul::data
