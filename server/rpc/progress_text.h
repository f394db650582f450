// "step 12 of 60, loss 2.3100, 240 tokens/s": a job's last known progress, for the page. "" where there is none.
#pragma once

#include <string>

#include "server/core/job.h"

namespace longhaul::server {

std::string ProgressText(const Job& job);

}  // namespace longhaul::server
