// What commands print: JSON and YAML of a proto, tables, and the sentences shared by several commands.
#pragma once

#include <google/protobuf/message.h>
#include <google/protobuf/timestamp.pb.h>

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "clients/cli/terminal.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "longhaul/v1/job.pb.h"
#include "longhaul/v1/plan.pb.h"

namespace longhaul::cli {

enum class OutputFormat { kTable, kWide, kJson, kYaml, kName };

// Proto JSON with the proto's field names and every scalar present; one line, or indented.
std::string ToJson(const google::protobuf::Message& message, bool one_line);
// The same facts without the scalars that are zero, for people.
std::string ToYaml(const google::protobuf::Message& message);
// kJson or kYaml.
void PrintMessage(const google::protobuf::Message& message, OutputFormat format, std::ostream& out);

// Columns padded to the widest cell, two spaces apart, no trailing spaces, nothing truncated.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void Print(std::ostream& out) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

int64_t ToMicros(const google::protobuf::Timestamp& time);  // 0 where absent
std::string Ago(const google::protobuf::Timestamp& time, const Clock& clock);
std::string Loss(double loss);  // "3.412"
// "about 2026-11-23T10:00:00.000Z (in 12m 00s)"; "nobody can tell" where it is absent, "now" where it is past.
std::string Expected(const google::protobuf::Timestamp& time, const Clock& clock);

// "step 12/60  loss 3.412  lr 4.2e-04  241 tok/s  eta 3m 20s  mem 1.20 GiB of 1.31 GiB"
// "2.750", with " after step 4" where it was measured before the point's own step; "" without an evaluation.
std::string DescribeEvaluation(const v1::TrainingProgress& progress);
std::string DescribeProgress(const v1::TrainingProgress& progress);
// "[10:00:00Z] QUEUED -> STARTING  attempt 2  WAITING_FOR_VRAM  message"
std::string DescribeEvent(const v1::JobEvent& event);
// Everything that `get` shows, with bad lines, failure and log tail.
void PrintJob(const v1::Job& job, const CliEnv& env, std::ostream& out);
// What came of a terminal job, in a few lines, with the next commands.
void PrintOutcome(const v1::Job& job, std::ostream& out);
// `projects`: the second column says whose each job is.
void PrintJobTable(const std::vector<v1::Job>& jobs, bool wide, bool projects, const CliEnv& env, std::ostream& out);
void PrintEstimate(const v1::EstimateFineTuneJobResponse& response, const CliEnv& env, std::ostream& out);
void PrintExplanation(const v1::ExplainFineTuneJobResponse& response, const CliEnv& env, std::ostream& out);

}  // namespace longhaul::cli
