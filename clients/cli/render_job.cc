#include <algorithm>
#include <ostream>

#include "base/format.h"
#include "clients/cli/render.h"
#include "clients/cli/watch.h"

namespace longhaul::cli {
namespace {

constexpr size_t kLabelWidth = 14;

void Row(std::ostream& out, const std::string& label, const std::string& value) {
  if (value.empty()) return;
  out << label << ":" << std::string(kLabelWidth - std::min(kLabelWidth, label.size() + 1), ' ') << value << "\n";
}

const char* StateColor(v1::JobState state) {
  switch (state) {
    case v1::SUCCEEDED:
      return "\x1b[32m";
    case v1::FAILED:
      return "\x1b[31m";
    case v1::RUNNING:
    case v1::STARTING:
    case v1::FINALIZING:
      return "\x1b[36m";
    default:
      return "\x1b[33m";
  }
}

std::string ColoredState(v1::JobState state, bool color) {
  const std::string name = v1::JobState_Name(state);
  return color ? StateColor(state) + name + "\x1b[0m" : name;
}

std::string ReasonText(const v1::Job& job) {
  return job.reason() == v1::REASON_UNSPECIFIED ? "-" : v1::Reason_Name(job.reason());
}

std::string Pairs(const google::protobuf::Map<std::string, std::string>& map) {
  std::vector<std::string> pairs;
  for (const auto& [key, value] : map) pairs.push_back(key + "=" + value);
  std::sort(pairs.begin(), pairs.end());
  std::string text;
  for (const std::string& pair : pairs) text += (text.empty() ? "" : ", ") + pair;
  return text;
}

std::string BadLines(int64_t count) { return FormatCount(count) + (count == 1 ? " bad line" : " bad lines"); }

void PrintDataReport(const v1::DataReport& report, std::ostream& out) {
  Row(out, "Data",
      FormatCount(report.examples()) + " examples, " + FormatCount(report.tokens()) + " tokens (" +
          FormatCount(report.trained_tokens()) + " of them targets), longest " + FormatCount(report.longest_tokens()) +
          ", dropped " + FormatCount(report.dropped()) + ", truncated " + FormatCount(report.truncated()) + ", " +
          BadLines(report.error_count()));
  for (const v1::DataError& error : report.errors()) {
    out << "  " << error.file_name() << (error.file_name().empty() ? "line " : ":") << error.line() << ": "
        << (error.field().empty() ? "" : error.field() + ": ") << error.reason() << "\n";
  }
  if (report.error_count() > report.errors_size()) {
    out << "  ... and " << FormatCount(report.error_count() - report.errors_size()) << " more\n";
  }
}

void PrintFailure(const v1::Job& job, std::ostream& out) {
  const v1::Failure& failure = job.failure();
  // Bad lines have been told, each on a line of its own.
  const bool told = failure.reason() == v1::INVALID_DATASET && job.data_report().error_count() > 0;
  Row(out, "Failure",
      v1::Reason_Name(failure.reason()) + "  " +
          (told ? BadLines(job.data_report().error_count()) : failure.message()));
  Row(out, "Fix",
      failure.user_can_fix() ? "yours: correct the job or its data and submit again"
                             : "not yours: see the log and the worker");
  if (failure.log_tail().empty() || told) return;
  out << "Log (its end; all of it: longhaul logs " << job.id() << "):\n";
  std::string line;
  for (const char c : failure.log_tail() + "\n") {
    if (c != '\n') {
      line += c;
      continue;
    }
    if (!line.empty()) out << "  | " << line << "\n";
    line.clear();
  }
}

void PrintResult(const v1::Job& job, std::ostream& out) {
  const v1::TrainingResult& result = job.result();
  Row(out, "Result",
      FormatCount(result.steps()) + " steps, " + FormatCount(result.trained_tokens()) + " tokens in " +
          FormatDuration(result.train_seconds()) + ", final loss " + Loss(result.final_loss()));
  if (result.has_eval_loss_before() && result.has_eval_loss_after()) {
    Row(out, "Held-out", Loss(result.eval_loss_before()) + " -> " + Loss(result.eval_loss_after()));
  }
  for (const v1::BlobFile& file : job.artifact().files()) {
    Row(out, "File", file.path() + "  " + FormatBytes(file.size_bytes()) + "  sha256 " + file.sha256());
  }
}

std::string Memory(int64_t device_bytes, int64_t host_bytes) {
  if (device_bytes > 0) return FormatBytes(device_bytes) + " VRAM";
  return host_bytes > 0 ? FormatBytes(host_bytes) + " RAM" : "-";
}
std::string Memory(const v1::Estimate& estimate) { return Memory(estimate.device_bytes(), estimate.host_bytes()); }

// What its last attempt was given; before one is placed, what is expected (a list does not tell that).
std::string Memory(const v1::Job& job) {
  const v1::Attempt& attempt = job.attempt();
  return attempt.kind() == v1::ATTEMPT_KIND_TRAIN ? Memory(attempt.device_bytes_planned(), attempt.host_bytes_planned())
                                                  : Memory(job.estimate());
}

void PrintForecast(const v1::QueueForecast& queue, const CliEnv& env, std::ostream& out) {
  out << "\nqueued now it would ";
  if (queue.position() == 0) {
    out << "start at once";
  } else {
    out << "be number " << queue.position() << " (" << v1::Reason_Name(queue.reason()) << ": " << queue.reason_detail()
        << ") and start: " << Expected(queue.expected_start_time(), *env.clock);
  }
  if (!queue.device_class().empty()) out << ", on " << queue.device_class();
  out << "\n";
  if (queue.has_expected_finish_time()) {
    out << "and end: " << Expected(queue.expected_finish_time(), *env.clock) << "\n";
  }
}

std::string Parts(const google::protobuf::RepeatedPtrField<v1::MemoryPart>& parts) {
  std::string text;
  for (const v1::MemoryPart& part : parts) {
    if (part.bytes() > 0) text += (text.empty() ? "" : ", ") + part.name() + " " + FormatBytes(part.bytes());
  }
  return text;
}

}  // namespace

void PrintJob(const v1::Job& job, const CliEnv& env, std::ostream& out) {
  Row(out, "Id", job.id());
  Row(out, "Name", job.suffix());
  const bool stored = ToMicros(job.create_time()) > 0;  // else a dry run's answer
  if (stored) Row(out, "State", ColoredState(job.state(), env.color && env.out_is_terminal));
  // (Why it failed has a row of its own.)
  if (job.reason() != v1::REASON_UNSPECIFIED && !job.has_failure())
    Row(out, "Reason", ReasonText(job) + "  " + job.reason_detail());
  if (job.queue_position() > 0) {
    Row(out, "Position", std::to_string(job.queue_position()));
    Row(out, "Starts", Expected(job.expected_start_time(), *env.clock));
  }
  Row(out, "Project", job.project());
  Row(out, "Model", job.resolved_spec().model());
  Row(out, "Dataset", job.spec().dataset().file_name() + "  " + FormatBytes(job.spec().dataset().size_bytes()));
  Row(out, "Labels", Pairs(job.labels()));
  if (stored) {
    Row(out, "Created",
        FormatTimestamp(ToMicros(job.create_time())) + "  (" + Ago(job.create_time(), *env.clock) + " ago)");
  }
  if (job.has_start_time()) Row(out, "Started", FormatTimestamp(ToMicros(job.start_time())));
  if (job.has_end_time()) Row(out, "Ended", FormatTimestamp(ToMicros(job.end_time())));
  if (job.has_attempt()) {
    const v1::Attempt& attempt = job.attempt();
    Row(out, "Attempt",
        std::to_string(attempt.number()) + "  on " + attempt.worker_id() + " " + attempt.device_id() +
            "  failed so far " + std::to_string(job.failed_attempts()));
  }
  if (job.has_estimate()) {
    const double seconds = job.estimate().total_seconds();  // 0 = not known before the data are read
    Row(out, "Estimate",
        Memory(job.estimate()) + " on " + job.estimate().device_class() +
            (seconds > 0 ? ", " + FormatDuration(seconds) : ""));
  }
  if (job.has_progress() && job.progress().step() > 0) {
    v1::TrainingProgress progress = job.progress();
    if (job.state() != v1::RUNNING) progress.clear_eta_seconds();
    Row(out, "Progress", DescribeProgress(progress));
  }
  if (job.has_data_report()) PrintDataReport(job.data_report(), out);
  if (job.has_failure()) PrintFailure(job, out);
  if (job.has_result()) PrintResult(job, out);
}

void PrintOutcome(const v1::Job& job, std::ostream& out) {
  out << job.id() << " " << v1::JobState_Name(job.state()) << "\n";
  if (job.state() == v1::FAILED) {
    if (job.data_report().error_count() > 0) PrintDataReport(job.data_report(), out);
    PrintFailure(job, out);
    out << "next: longhaul get " << job.id() << "; longhaul logs " << job.id() << "\n";
  } else if (job.state() == v1::SUCCEEDED) {
    PrintResult(job, out);
    out << "next: longhaul download " << job.id() << " -d DIR\n";
  }
}

void PrintJobTable(const std::vector<v1::Job>& jobs, bool wide, bool projects, const CliEnv& env, std::ostream& out) {
  std::vector<std::string> header = {"ID", "NAME", "STATE", "REASON", "PROGRESS", "LOSS", "MEMORY", "AGE", "ETA"};
  if (projects) header.insert(header.begin() + 1, "PROJECT");
  if (wide) header.insert(header.end(), {"MODEL", "WORKER", "ATTEMPT", "FAILED"});
  if (wide && !projects) header.push_back("PROJECT");
  if (wide) header.push_back("LABELS");
  Table table(std::move(header));
  for (const v1::Job& job : jobs) {
    const v1::TrainingProgress& progress = job.progress();
    const bool stepped = progress.step() > 0;
    const std::string done = std::to_string(progress.step()) + "/" + std::to_string(progress.total_steps());
    std::vector<std::string> row = {
        job.id(),
        job.suffix().empty() ? "-" : job.suffix(),
        v1::JobState_Name(job.state()),
        ReasonText(job),
        stepped ? done : "-",
        stepped ? Loss(progress.loss()) : "-",
        Memory(job),
        Ago(job.create_time(), *env.clock),
        stepped && job.state() == v1::RUNNING ? FormatDuration(progress.eta_seconds()) : "-",
    };
    if (projects) row.insert(row.begin() + 1, job.project());
    if (wide) {
      const bool placed = job.has_attempt();
      row.insert(row.end(),
                 {job.spec().model(), placed ? job.attempt().worker_id() : "-",
                  placed ? std::to_string(job.attempt().number()) : "-", std::to_string(job.failed_attempts())});
      if (!projects) row.push_back(job.project());
      row.push_back(Pairs(job.labels()));
    }
    table.Add(std::move(row));
  }
  table.Print(out);
}

void PrintEstimate(const v1::EstimateFineTuneJobResponse& response, const CliEnv& env, std::ostream& out) {
  Table table({"DEVICE CLASS", "WORKERS", "FITS", "VRAM", "RAM", "DISK", "STEP", "TOTAL", "LONGEST SEQUENCE"});
  for (const v1::DeviceClassEstimate& entry : response.classes()) {
    const v1::Estimate& estimate = entry.estimate();
    table.Add({entry.device_class(), std::to_string(entry.workers()), entry.fits() ? "yes" : "no",
               estimate.device_bytes() > 0 ? FormatBytes(estimate.device_bytes()) : "-",
               estimate.host_bytes() > 0 ? FormatBytes(estimate.host_bytes()) : "-",
               estimate.disk_bytes() > 0 ? FormatBytes(estimate.disk_bytes()) : "-",
               estimate.step_seconds() > 0 ? FormatDuration(estimate.step_seconds()) : "-",
               estimate.total_seconds() > 0 ? FormatDuration(estimate.total_seconds()) : "-",
               entry.longest_sequence_length() > 0 ? FormatCount(entry.longest_sequence_length()) : "-"});
  }
  table.Print(out);
  for (const v1::DeviceClassEstimate& entry : response.classes()) {
    out << "\n" << entry.device_class() << ": " << (entry.fits() ? "fits" : "does not fit") << "\n";
    if (!entry.why().empty()) out << "  why: " << entry.why() << "\n";
    if (const std::string parts = Parts(entry.estimate().device_parts()); !parts.empty())
      out << "  VRAM: " << parts << "\n";
    if (const std::string parts = Parts(entry.estimate().host_parts()); !parts.empty())
      out << "  RAM: " << parts << "\n";
    if (!entry.estimate().plan_summary().empty()) out << "  plan: " << entry.estimate().plan_summary() << "\n";
    for (const std::string& warning : entry.estimate().warnings()) out << "  warning: " << warning << "\n";
  }
  if (response.has_queue()) PrintForecast(response.queue(), env, out);
  if (response.queue_unknown()) {
    out << "\nwhen it would start is not known now: the scheduler is busy telling others; ask again in a moment\n";
  }
}

}  // namespace longhaul::cli
