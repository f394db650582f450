// What `longhaul data preview` shows: the first examples as the model will read them, what trains, what is cut.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/data/dataset.h"

namespace longhaul::data {

// {"examples": [{line, text, tokens, cut, ids, train, trained_text}], "errors": [...], "report": {...}}.
// The report covers the whole file. Errors as LoadDataset.
absl::StatusOr<Json> PreviewDataset(const std::string& path, int64_t count, const Tokenizer& tokenizer,
                                    const ChatTemplate* chat, const DatasetOptions& options);

// The same for people; `color` marks what trains with ANSI colours, else with 【 】.
std::string PreviewText(const Json& preview, const Tokenizer& tokenizer, bool color);

Json ReportToJson(const DatasetReport& report);

}  // namespace longhaul::data
