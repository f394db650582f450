// The page at /: jobs and workers as they are now. One self-contained document: no script, nothing loaded from
// elsewhere.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/core/job.h"
#include "server/dispatcher.h"

namespace longhaul::server {

struct PageJob {
  Job job;
  std::string progress;  // one phrase, "" = none
};

struct PageInput {
  std::vector<PageJob> jobs;  // newest first
  bool more_jobs = false;
  std::vector<WorkerView> workers;
  int64_t now_wall_micros = 0;
  std::string version;
};

// &, <, >, " and ' as entities: safe in text and in quoted attributes.
std::string EscapeHtml(std::string_view text);

// Pure. Everything that came from outside is escaped.
std::string RenderPage(const PageInput& input);

}  // namespace longhaul::server
