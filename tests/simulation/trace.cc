#include "tests/simulation/trace.h"

#include <array>
#include <sstream>

#include "base/error.h"
#include "tests/simulation/draws.h"

namespace longhaul::simulation {
namespace {

constexpr char kHeader[] = "longhaul simulation 1";

struct OpFacts {
  const char* name;
  int weight;  // how often, in memory
  int disk_weight;
};

constexpr std::array<OpFacts, kOps> kOpFacts = {{
    {"create", 14, 14},    {"cancel", 5, 4},      {"pause", 5, 3},        {"resume", 5, 4},    {"delete", 3, 3},
    {"crash", 4, 2},       {"lie_commit", 3, 0},  {"stand_still", 4, 2},  {"power_cut", 0, 9}, {"store_fails", 3, 2},
    {"writes_fail", 2, 0}, {"agent_dies", 3, 2},  {"machine_dies", 2, 1}, {"disk_lost", 1, 1}, {"agent_starts", 8, 6},
    {"partition", 4, 2},   {"stall", 4, 2},       {"trainer_dies", 5, 3}, {"drain", 3, 2},     {"collect", 4, 5},
    {"blob_lost", 1, 0},   {"stale_write", 4, 3}, {"wall_step", 2, 1},    {"wait", 12, 10},
}};

}  // namespace

const char* Name(Op op) { return kOpFacts[static_cast<size_t>(op)].name; }

Trace MakeTrace(uint64_t seed, bool disk) {
  Trace trace;
  trace.seed = seed;
  trace.disk = disk;
  Draws draws(seed ^ 0x51e9'0000'0000'0000u);
  int total = 0;
  for (const OpFacts& facts : kOpFacts) total += disk ? facts.disk_weight : facts.weight;
  const size_t count = 40 + draws.Below(disk ? 60 : 120);
  while (trace.steps.size() < count) {
    int at = static_cast<int>(draws.Below(static_cast<uint64_t>(total)));
    int op = 0;
    while (true) {
      const OpFacts& facts = kOpFacts[static_cast<size_t>(op)];
      at -= disk ? facts.disk_weight : facts.weight;
      if (at < 0) break;
      ++op;
    }
    Step step;
    step.op = static_cast<Op>(op);
    step.a = draws.Below(1'000);
    step.b = draws.Below(1'000);
    // Mostly a moment, sometimes several leases.
    step.after_permille = draws.Below(10) == 0 ? draws.Below(4'000) : draws.Below(500);
    trace.steps.push_back(step);
  }
  return trace;
}

std::string ToText(const Trace& trace) {
  std::string text =
      std::string(kHeader) + "\nseed " + std::to_string(trace.seed) + (trace.disk ? " disk\n" : " memory\n");
  for (const Step& step : trace.steps) {
    text += std::string(Name(step.op)) + " " + std::to_string(step.a) + " " + std::to_string(step.b) + " after " +
            std::to_string(step.after_permille) + "\n";
  }
  return text;
}

absl::StatusOr<Trace> FromText(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  int number = 0;
  Trace trace;
  const auto bad = [&](const std::string& why) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TRACE",
                     "line " + std::to_string(number) + " of the trace: " + why);
  };
  while (std::getline(lines, line)) {
    ++number;
    std::istringstream words(line);
    std::string word;
    if (number == 1) {
      if (line != kHeader) return bad("is not '" + std::string(kHeader) + "'");
    } else if (number == 2) {
      std::string store;
      if (!(words >> word >> trace.seed >> store) || word != "seed")
        return bad("is not 'seed N memory' or 'seed N disk'");
      trace.disk = store == "disk";
    } else if (!line.empty() && line[0] != '#') {
      Step step;
      std::string after;
      if (!(words >> word >> step.a >> step.b >> after >> step.after_permille)) return bad("is not 'OP A B after N'");
      int op = 0;
      while (op < kOps && word != Name(static_cast<Op>(op))) ++op;
      if (op == kOps) return bad("there is no '" + word + "'");
      step.op = static_cast<Op>(op);
      trace.steps.push_back(step);
    }
  }
  if (number < 2) return bad("the trace has no header");
  return trace;
}

}  // namespace longhaul::simulation
