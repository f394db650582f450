#include "server/http/page.h"

#include <algorithm>

#include "base/format.h"

namespace longhaul::server {
namespace {

constexpr char kHead[] = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5"><title>Longhaul</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2430; background: #fff; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; color: #5b6675; } table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: #5b6675; } th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #e3e7ec; vertical-align: top; }
code { font-size: .92em; } .SUCCEEDED, .up { color: #17713b; } .FAILED, .down { color: #b3261e; } .RUNNING { color: #0b57a4; }
@media (prefers-color-scheme: dark) { body { background: #14181d; color: #dfe4ea; } th, td { border-color: #2c333b; } p, th { color: #98a3b0; }
.SUCCEEDED, .up { color: #6dd08f; } .FAILED, .down { color: #ff8a80; } .RUNNING { color: #7fb8f0; } }
</style></head><body>
)";

std::string Cell(const std::string& text) { return "<td>" + EscapeHtml(text) + "</td>"; }

std::string Age(int64_t from_micros, int64_t to_micros) {
  return FormatDuration(static_cast<double>(std::max<int64_t>(0, to_micros - from_micros)) * 1e-6);
}

std::string JobDetail(const PageJob& shown) {
  const Job& job = shown.job;
  if (job.state == JobState::kFailed) return job.failure.message;
  if (!shown.progress.empty() && job.state != JobState::kQueued) return shown.progress;
  if (!job.reason_detail.empty()) return job.reason_detail;
  return job.reason == Reason::kNone ? shown.progress : Name(job.reason);
}

std::string JobRow(const PageJob& shown, int64_t now_wall_micros) {
  const Job& job = shown.job;
  const std::string state = Name(job.state);
  const int64_t end = job.end_wall_micros != 0 ? job.end_wall_micros : now_wall_micros;
  std::string row = "<tr><td><code>" + EscapeHtml(job.id) + "</code></td>";
  row += Cell(job.suffix) + Cell(job.model);
  row += "<td class=\"" + state + "\">" + state + "</td>" + Cell(JobDetail(shown));
  row += Cell(job.attempt.number == 0 ? "" : std::to_string(job.attempt.number) + " on " + job.attempt.worker_id);
  row += Cell(FormatTimestamp(job.create_wall_micros)) + Cell(Age(job.create_wall_micros, end));
  return row + "</tr>\n";
}

std::string WorkerRow(const WorkerView& view, int64_t now_wall_micros) {
  const Worker& worker = *view.worker;
  std::string devices;
  for (const DeviceEntry& device : worker.devices) {
    devices += (devices.empty() ? "" : ", ") + device.id + " (" + device.facts.device_class + ")";
  }
  std::string models;
  for (const ModelEntry& model : worker.models) models += (models.empty() ? "" : ", ") + model.name;
  const bool up = view.online && !view.suspect;
  std::string row = "<tr><td><code>" + EscapeHtml(worker.id) + "</code></td>" + Cell(worker.host_name);
  row += std::string("<td class=\"") + (up ? "up" : "down") + "\">" +
         (view.suspect      ? "suspect"
          : !view.online    ? "offline"
          : view.leaving    ? "shutting down"
          : worker.draining ? "draining"
                            : "online") +
         "</td>";
  row += Cell(view.last_sync_wall_micros == 0 ? "never" : Age(view.last_sync_wall_micros, now_wall_micros) + " ago");
  row += Cell(devices) + Cell(models) + Cell(std::to_string(view.attempts.size()));
  row += Cell(FormatBytes(view.host_bytes_reserved) + " of " + FormatBytes(worker.host_bytes_total));
  row += Cell(std::to_string(view.cpu_threads_reserved) + " of " + std::to_string(worker.cpu_threads_total));
  return row + "</tr>\n";
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string RenderPage(const PageInput& input) {
  std::string page = kHead;
  page += "<h1>Longhaul</h1><p>Version " + EscapeHtml(input.version) + ", " + FormatTimestamp(input.now_wall_micros) +
          ". <a href=\"/metrics\">Metrics</a></p>\n<h2>Jobs</h2>\n";
  if (input.jobs.empty()) {
    page += "<p>No jobs yet.</p>\n";
  } else {
    page +=
        "<table><tr><th>Job</th><th>Name</th><th>Model</th><th>State</th><th>Detail</th><th>Attempt</th><th>Created</"
        "th>"
        "<th>Age</th></tr>\n";
    for (const PageJob& job : input.jobs) page += JobRow(job, input.now_wall_micros);
    page += "</table>\n";
  }
  if (input.more_jobs) {
    page += "<p>The newest " + std::to_string(input.jobs.size()) + " jobs; <code>longhaul list</code> has all.</p>\n";
  }
  page += "<h2>Workers</h2>\n";
  if (input.workers.empty()) {
    page += "<p>No worker has registered yet.</p>\n";
  } else {
    page +=
        "<table><tr><th>Worker</th><th>Host</th><th>State</th><th>Last heard of</th><th>Devices</th><th>Models</th>"
        "<th>Attempts</th><th>Host memory reserved</th><th>Threads</th></tr>\n";
    for (const WorkerView& worker : input.workers) page += WorkerRow(worker, input.now_wall_micros);
    page += "</table>\n";
  }
  return page + "</body></html>\n";
}

}  // namespace longhaul::server
