// What `longhaul data preview` shows: the first examples as the model will read them, what trains, what is cut.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/data/dataset.h"

namespace longhaul::data {

// {"examples": [{line, text, tokens, cut, dropped, ids, train, trained_text, cut_ids, cut_text}], "errors": [...],
// "report": {...}}. `cut` counts the ids of cut_ids, which follow `ids` in the line and are not trained on.
// The report covers the whole file. Errors as LoadDataset.
absl::StatusOr<Json> PreviewDataset(const std::string& path, int64_t count, const Tokenizer& tokenizer,
                                    const ChatTemplate* chat, const DatasetOptions& options);

struct PreviewStyle {
  bool color = false;  // what trains in ANSI colours, else in 【 】
  bool ids = false;    // and a table of the tokens: position, id, "train", "-" or "cut", text as a JSON string
};

// The same for people, with the first of what is cut.
std::string PreviewText(const Json& preview, const Tokenizer& tokenizer, const PreviewStyle& style);

Json ReportToJson(const DatasetReport& report);

}  // namespace longhaul::data
