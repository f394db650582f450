// What `explain` shows.
#include <cstdio>
#include <ostream>

#include "base/format.h"
#include "clients/cli/render.h"

namespace longhaul::cli {
namespace {

std::string Ids(const google::protobuf::RepeatedPtrField<std::string>& ids) {
  std::string text;
  for (const std::string& id : ids) text += (text.empty() ? "" : ", ") + id;
  return text;
}

std::string OfLimit(int64_t limit, const std::string& text) { return limit > 0 ? ", " + text : ""; }

void PrintProject(const v1::ExplainFineTuneJobResponse& response, std::ostream& out) {
  char share[32];
  std::snprintf(share, sizeof(share), "%.1f%%", response.project_share() * 100);
  out << "project:   " << response.job().project() << " has used " << share << " of late, "
      << response.project_running_jobs() << " running";
  if (response.has_quota()) {
    const v1::ProjectQuota& quota = response.quota();
    out << "; quota"
        << OfLimit(quota.running_jobs(), std::to_string(quota.running_jobs()) + " running jobs") +
               OfLimit(quota.device_bytes(), FormatBytes(quota.device_bytes()) + " VRAM") +
               OfLimit(quota.host_bytes(), FormatBytes(quota.host_bytes()) + " RAM") +
               OfLimit(quota.cpu_threads(), std::to_string(quota.cpu_threads()) + " threads");
  }
  out << "\n";
}

void PrintPlaces(const v1::ExplainFineTuneJobResponse& response, const CliEnv& env, std::ostream& out) {
  if (response.places().empty()) return;
  out << "\n";
  Table table({"WORKER", "DEVICE", "CLASS", "ROOM THERE", "WHY NOT NOW"});
  for (const v1::StartPlace& place : response.places()) {
    const std::string room = !place.possible()     ? "never"
                             : place.why().empty() ? "now"
                                                   : Expected(place.expected_time(), *env.clock);
    table.Add({place.worker_id(), place.device_id().empty() ? "-" : place.device_id(),
               place.device_class().empty() ? "-" : place.device_class(), room,
               place.why().empty() ? "others go first" : place.why()});
  }
  table.Print(out);
  if (response.more_places()) out << "... and more\n";
}

}  // namespace

void PrintExplanation(const v1::ExplainFineTuneJobResponse& response, const CliEnv& env, std::ostream& out) {
  const v1::Job& job = response.job();
  out << job.id() << " " << v1::JobState_Name(job.state()) << "\n" << response.summary() << "\n";
  for (const std::string& unblock : response.unblocks()) out << "unblocks:  " << unblock << "\n";
  if (job.queue_position() == 0) return;
  out << "position:  " << job.queue_position() << " of " << response.waiting_jobs() << "\n";
  out << "starts:    " << Expected(job.expected_start_time(), *env.clock);
  if (response.reserved()) {
    out << "; reserved on worker " << response.reserved_worker_id();
    if (!response.after_job_ids().empty()) out << " after " << Ids(response.after_job_ids());
  }
  out << "\n";
  if (!response.preempted_job_ids().empty()) out << "makes room: " << Ids(response.preempted_job_ids()) << "\n";
  PrintProject(response, out);
  PrintPlaces(response, env, out);
}

}  // namespace longhaul::cli
