// JSONL to token ids and masks. Lines of {"messages": [...]} (OpenAI's chat format) or {"text": "..."}.
// Bad lines are collected, not fatal: the caller decides. Tests: tests/worker/data/dataset_test.cc
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/data/chat_template.h"
#include "worker/data/json.h"
#include "worker/data/tokenizer.h"

namespace longhaul::data {

enum class LineFormat { kAuto, kMessages, kText };

struct Example {
  std::vector<int32_t> ids;
  std::vector<uint8_t> train;  // [ids]: 1 where the token is a target
  int64_t line = 0;            // 1-based
};

struct LineError {
  int64_t line = 0;
  std::string field;  // "messages[1].role"
  std::string reason;
};

struct LengthBucket {
  int64_t up_to_tokens = 0;  // a power of two
  int64_t examples = 0;
};

struct DatasetReport {
  int64_t examples = 0;
  int64_t tokens = 0;
  int64_t trained_tokens = 0;  // targets: trained tokens but for a document's first
  int64_t dropped = 0;         // nothing left to train on
  int64_t truncated = 0;
  int64_t longest_tokens = 0;
  std::vector<LengthBucket> length_histogram;
  std::vector<LineError> errors;  // the first limits::kMaxDatasetErrorsReported
  int64_t error_count = 0;
};

struct DatasetOptions {
  LineFormat format = LineFormat::kAuto;  // kAuto: told from the first good line
  int64_t max_sequence_length = 2048;     // a longer example keeps its start
  bool train_on_responses_only = true;    // messages; false: every token trains
  std::function<bool()> cancelled = {};   // asked before each line by LoadDataset; true: CANCELLED
};

struct Dataset {
  std::vector<Example> examples;
  DatasetReport report;
};

// One line at a time: also what `data preview` shows. Not thread-safe (it keeps the tokenizer's scratch).
class LineReader {
 public:
  struct Line {
    Example example;               // truncated
    std::vector<int32_t> cut_ids;  // what came after it
    std::string text;              // as rendered
    int64_t full_tokens = 0;       // before truncation
    bool trains = false;           // some target is left
  };
  // `chat` may be null where the model has no template; then a line of messages is an error. Arguments outlive the
  // reader.
  LineReader(const Tokenizer* tokenizer, const ChatTemplate* chat, DatasetOptions options)
      : tokenizer_(tokenizer), chat_(chat), options_(options) {}

  // False with *error filled in (but for its line) where the line is bad.
  bool Read(std::string_view json_line, Line* line, LineError* error);

 private:
  bool ReadMessages(const Json& object, Line* line, LineError* error);
  bool ReadText(const Json& object, Line* line, LineError* error);
  void Finish(Encoding encoding, std::vector<uint8_t> train, Line* line);

  const Tokenizer* tokenizer_;
  const ChatTemplate* chat_;
  DatasetOptions options_;
  BpeScratch scratch_;
};

// Errors only where the file cannot be read, or CANCELLED. Empty lines are skipped.
absl::StatusOr<Dataset> LoadDataset(const std::string& path, const Tokenizer& tokenizer, const ChatTemplate* chat,
                                    const DatasetOptions& options);

// Moves `count` examples, chosen by EpochOrder(seed), from `dataset` to the result, both in their order in the file.
// INVALID_ARGUMENT where nothing would be left to train on.
absl::StatusOr<std::vector<Example>> HoldOut(int64_t count, uint64_t seed, std::vector<Example>* dataset);

// Targets: trained tokens that have a token before them in their document.
int64_t CountTargets(const Example& example);

}  // namespace longhaul::data
