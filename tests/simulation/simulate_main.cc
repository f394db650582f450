// simulate [--disk] --seeds FIRST..LAST [--out FOLDER]     seed after seed; the first that fails is shrunk and written
// simulate --replay FILE                                   one trace, with everything that happens in it
// Runs chunk by chunk in children, so that a CHECK in a run is a finding and not the end.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/clock.h"
#include "base/env.h"
#include "tests/simulation/shrink.h"
#include "tests/simulation/trace.h"
#include "tests/simulation/world.h"

namespace longhaul::simulation {
namespace {

constexpr uint64_t kChunk = 200;

// What a child tells its parent, also by dying.
struct Shared {
  uint64_t seed = 0;  // being run
  bool failed = false;
  int64_t runs = 0;
  int64_t simulated_seconds = 0;
  int64_t turns = 0;
  int64_t jobs = 0;
  int64_t power_cuts = 0;
};

void RunChunk(uint64_t first, uint64_t last, bool disk, Shared* shared) {
  for (uint64_t seed = first; seed <= last; ++seed) {
    shared->seed = seed;
    const Outcome outcome = Simulate(MakeTrace(seed, disk));
    if (!outcome.violations.empty()) {
      shared->failed = true;
      return;
    }
    ++shared->runs;
    shared->simulated_seconds += outcome.simulated_seconds;
    shared->turns += outcome.turns;
    shared->jobs += outcome.jobs;
    shared->power_cuts += outcome.power_cuts;
  }
}

int RunSeeds(uint64_t first, uint64_t last, bool disk, const std::string& out) {
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  LH_CHECK(memory != MAP_FAILED);
  Shared* shared = new (memory) Shared();
  const RealClock clock;
  const int64_t begin = clock.BootNanos();
  for (uint64_t seed = first; seed <= last; seed += kChunk) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    LH_CHECK(child >= 0, "fork");
    if (child == 0) {
      RunChunk(seed, std::min(last, seed + kChunk - 1), disk, shared);
      ::_exit(0);
    }
    int status = 0;
    LH_CHECK(::waitpid(child, &status, 0) == child);
    if (shared->failed || !WIFEXITED(status)) {
      const std::string text = Explain(MakeTrace(shared->seed, disk));
      std::fputs(text.c_str(), stdout);
      const std::string path = JoinPath(out, "seed-" + std::to_string(shared->seed) + ".txt");
      if (!out.empty() && WriteFileAtomic(path, text).ok()) std::printf("written to %s\n", path.c_str());
      return 1;
    }
  }
  const double seconds = static_cast<double>(clock.BootNanos() - begin) / 1e9;
  std::printf(
      "%lld runs of seeds %llu..%llu%s in %.1f s: %.1f simulated weeks, %lld turns, %lld jobs, %lld power cuts, "
      "no violation\n",
      static_cast<long long>(shared->runs), static_cast<unsigned long long>(first),
      static_cast<unsigned long long>(last), disk ? " on a disk" : "", seconds,
      static_cast<double>(shared->simulated_seconds) / (7 * 86'400.0), static_cast<long long>(shared->turns),
      static_cast<long long>(shared->jobs), static_cast<long long>(shared->power_cuts));
  return 0;
}

int Replay(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, 1 << 20);
  const absl::StatusOr<Trace> trace = text.ok() ? FromText(*text) : text.status();
  if (!trace.ok()) {
    std::fprintf(stderr, "simulate: %s\n", std::string(trace.status().message()).c_str());
    return 2;
  }
  const Outcome outcome = SimulateIsolated(*trace);
  std::fputs(outcome.notes.c_str(), stdout);
  for (const std::string& violation : outcome.violations) std::printf("VIOLATION: %s\n", violation.c_str());
  return outcome.violations.empty() ? 0 : 1;
}

int Main(int argc, char** argv) {
  bool disk = false;
  std::string seeds;
  std::string out;
  std::string replay;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--disk") {
      disk = true;
    } else if (i + 1 < argc && word == "--seeds") {
      seeds = argv[++i];
    } else if (i + 1 < argc && word == "--out") {
      out = argv[++i];
    } else if (i + 1 < argc && word == "--replay") {
      replay = argv[++i];
    }
  }
  if (!replay.empty()) return Replay(replay);
  unsigned long long first = 0;
  unsigned long long last = 0;
  if (std::sscanf(seeds.c_str(), "%llu..%llu", &first, &last) == 2 && first <= last) {
    return RunSeeds(first, last, disk, out);
  }
  std::fprintf(stderr, "usage: simulate [--disk] --seeds FIRST..LAST [--out FOLDER] | simulate --replay FILE\n");
  return 2;
}

}  // namespace
}  // namespace longhaul::simulation

int main(int argc, char** argv) { return longhaul::simulation::Main(argc, argv); }
