#include "server/rpc/progress_text.h"

#include <cstdio>

#include "longhaul/v1/job.pb.h"

namespace longhaul::server {

std::string ProgressText(const Job& job) {
  v1::TrainingProgress progress;
  if (job.progress.empty() || !progress.ParseFromString(job.progress)) return "";
  char text[160];
  std::snprintf(text, sizeof(text), "step %lld of %lld, loss %.4f, %.0f tokens/s",
                static_cast<long long>(progress.step()), static_cast<long long>(progress.total_steps()),
                progress.loss(), progress.tokens_per_second());
  return text;
}

}  // namespace longhaul::server
