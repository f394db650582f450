// How long a scheduling pass takes: full, from a snapshot of values, and incremental, a change and the pass after it on
// a table that is kept; and how long it takes to tell everybody who waits why, where in the queue and until when. A
// fleet that is full and a long queue of many shapes, projects and classes, by a seed.
//   scheduler_bench [--jobs N] [--workers N] [--rounds N] [--shapes N] [--seed N]
// Prints one line a case: p50, p99 and the worst of the rounds, in milliseconds.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/units.h"
#include "server/core/scheduler.h"
#include "server/core/scheduler_table.h"

namespace longhaul::server {
namespace {

constexpr int64_t kSecond = 1'000'000;
constexpr int kProjects = 20;
constexpr int kDevices = 4;
const char* const kClasses[] = {"A100", "H100", "H200"};

struct Options {
  int jobs = 10'000;
  int workers = 1'000;
  int rounds = 400;
  int shapes = 300;
  uint64_t seed = 1;
};

class Bench {
 public:
  explicit Bench(Options options) : options_(options) {
    MakeShapes();
    for (int i = 0; i < options_.workers; ++i) snapshot_.workers.push_back(MakeWorker(i));
    for (int i = 0; i < options_.jobs; ++i) snapshot_.waiting.push_back(MakeWaiting());
    for (int i = 0; i < kProjects; ++i) snapshot_.shares["p" + std::to_string(i)] = Uniform();
    Fill();
  }

  void Run() {
    std::printf("%d queued jobs of %d shapes, %d workers of %d devices, %zu running\n", options_.jobs, options_.shapes,
                options_.workers, kDevices, RunningCount());
    Measure("full pass from a snapshot", options_.rounds, [&] { return Waiting(Decide(snapshot_, Tick())); });
    Measure("the same, and what all are told", options_.rounds, [&] { return Waiting(Plan(snapshot_, Tick())); });
    SchedulerTable table;
    for (const WorkerSlot& slot : snapshot_.workers) table.PutWorker(slot);
    for (const auto& [project, share] : snapshot_.shares) table.SetShare(project, share);
    for (const WaitingJob& waiting : snapshot_.waiting) table.PutWaiting(waiting);
    table.Plan(Tick());
    Measure("a job arrives", options_.rounds, [&] {
      const WaitingJob waiting = MakeWaiting();
      return Timed([&] { table.PutWaiting(waiting); }, &table);
    });
    Measure("a job is cancelled", options_.rounds, [&] {
      const uint64_t number = jobs_[Draw(static_cast<uint64_t>(options_.jobs))].create_number;
      return Timed([&] { table.RemoveWaiting(number); }, &table);
    });
    Measure("a worker tells of progress", options_.rounds, [&] {
      WorkerSlot& slot = snapshot_.workers[Draw(snapshot_.workers.size())];
      for (RunningAttempt& running : slot.running) running.end_boot_micros += kSecond;
      const WorkerSlot told = slot;
      return Timed([&] { table.PutWorker(told); }, &table);
    });
    Measure("an attempt ends, another starts", options_.rounds, [&] { return EndAndStart(&table); });
    bool lost = false;
    Measure("a worker is lost, or comes back", options_.rounds, [&] {
      lost = !lost;
      return Timed([&] { table.SetReachable(snapshot_.workers.front().worker->id, !lost); }, &table);
    });
    Measure("what all who wait are told", options_.rounds, [&] { return Waiting(table.Plan(Tick())); });
  }

 private:
  uint64_t Draw(uint64_t n) { return CounterBits(options_.seed, ++draws_) % n; }
  double Uniform() { return CounterUniform(options_.seed, ++draws_); }
  PlanTime Tick() {
    now_.boot_micros += 1'000;
    now_.wall_micros += 1'000;
    return now_;
  }

  void MakeShapes() {
    for (int i = 0; i < options_.shapes; ++i) {
      JobDemands demands;
      const int64_t device = (4 + static_cast<int64_t>(Draw(60))) * kGiB + static_cast<int64_t>(Draw(1 << 20));
      const int64_t host = (1 + static_cast<int64_t>(Draw(16))) * kGiB + static_cast<int64_t>(Draw(1 << 20));
      const int threads = 1 + static_cast<int>(Draw(6));
      for (int c = 0; c < 3; ++c) {
        for (int point = 1; point <= 3; ++point) {
          Demand& demand = demands[kClasses[c]][static_cast<size_t>(point) - 1];
          demand.device_bytes = device * (2 + point) / 3;
          demand.fits = demand.device_bytes <= 80 * kGiB;
          if (!demand.fits) demand.why = "needs more than 80 GiB";
          demand.host_bytes = host;
          demand.disk_bytes = kGiB;
          demand.cpu_threads = threads;
          demand.step_seconds = (3.0 - c) / (1 + 0.1 * point);
        }
      }
      shapes_.push_back(std::make_shared<const JobDemands>(std::move(demands)));
    }
  }

  WorkerSlot MakeWorker(int i) {
    Worker worker;
    char id[16];
    std::snprintf(id, sizeof(id), "w%04d", i);
    worker.id = id;
    worker.host_bytes_total = 512 * kGiB;
    worker.disk_bytes_total = 4096 * kGiB;
    worker.cpu_threads_total = 64;
    for (int d = 0; d < kDevices; ++d) {
      DeviceEntry device;
      device.id = "gpu-" + std::to_string(d);
      device.facts.device_class = kClasses[i % 3];
      device.facts.device_bytes = 80 * kGiB;
      worker.devices.push_back(device);
    }
    for (int m = 0; m < 4; ++m) {
      if (m > 0 && Draw(3) == 0) continue;
      ModelEntry model;
      model.digest = "model-" + std::to_string(m);
      worker.models.push_back(model);
    }
    WorkerSlot slot;
    slot.worker = std::make_shared<const Worker>(std::move(worker));
    slot.reachable = true;
    slot.plan_matches = true;
    return slot;
  }

  WaitingJob MakeWaiting() {
    Job job;
    job.create_number = jobs_.size() + 1;
    job.id = "ftjob-" + std::to_string(job.create_number);
    job.project = "p" + std::to_string(Draw(kProjects));
    job.priority = static_cast<PriorityClass>(1 + Draw(3));
    job.model = "model";
    job.model_digest = "model-" + std::to_string(Draw(4));
    job.state = JobState::kQueued;
    job.total_steps = 100 + static_cast<int64_t>(Draw(20'000));
    jobs_.push_back(std::move(job));
    return {&jobs_.back(), shapes_[Draw(shapes_.size())]};
  }

  // Passes whose starts run, until nothing more starts: the fleet is full. Then jobs anew, so that the queue is long.
  void Fill() {
    while (true) {
      const PlanResult result = Plan(snapshot_, now_);
      if (result.starts.empty()) break;
      for (const Start& start : result.starts) Occupy(start);
    }
    while (static_cast<int>(snapshot_.waiting.size()) < options_.jobs) snapshot_.waiting.push_back(MakeWaiting());
  }

  void Occupy(const Start& start) {
    const auto waiting = std::find_if(snapshot_.waiting.begin(), snapshot_.waiting.end(),
                                      [&](const WaitingJob& one) { return one.job->id == start.job_id; });
    WorkerSlot& slot = SlotOf(start.worker_id);
    slot.running.push_back(RunningOf(*waiting->job, start));
    snapshot_.waiting.erase(waiting);
  }
  WorkerSlot& SlotOf(const std::string& id) { return snapshot_.workers[std::stoul(id.substr(1))]; }
  RunningAttempt RunningOf(const Job& job, const Start& start) {
    RunningAttempt running;
    running.job_id = job.id;
    running.project = job.project;
    running.priority = job.priority;
    running.device = std::atoi(start.device_id.c_str() + 4);
    running.need = NeedOf(start.demand);
    running.end_boot_micros = now_.boot_micros + static_cast<int64_t>(Uniform() * 20'000) * kSecond;
    // Half have run long enough to be preempted.
    running.preemptible_boot_micros = now_.boot_micros + (Draw(2) == 0 ? -kSecond : 3'600 * kSecond);
    return running;
  }
  size_t RunningCount() const {
    size_t count = 0;
    for (const WorkerSlot& slot : snapshot_.workers) count += slot.running.size();
    return count;
  }

  // The measured part: the change and the pass.
  template <class Change>
  size_t Timed(Change change, SchedulerTable* table) {
    begin_nanos_ = clock_.BootNanos();
    change();
    const PlanResult result = table->Decide(Tick());
    nanos_ = clock_.BootNanos() - begin_nanos_;
    return Waiting(result);
  }

  size_t EndAndStart(SchedulerTable* table) {
    WorkerSlot* slot = nullptr;
    do {
      slot = &snapshot_.workers[Draw(snapshot_.workers.size())];
    } while (slot->running.empty());
    slot->running.erase(slot->running.begin() + static_cast<int64_t>(Draw(slot->running.size())));
    const WorkerSlot told = *slot;
    begin_nanos_ = clock_.BootNanos();
    table->PutWorker(told);
    const PlanResult result = table->Decide(Tick());
    nanos_ = clock_.BootNanos() - begin_nanos_;
    for (const Start& start : result.starts) {
      const Job& job = jobs_[std::stoul(start.job_id.substr(6)) - 1];
      SlotOf(start.worker_id).running.push_back(RunningOf(job, start));
      table->RemoveWaiting(job.create_number);
      table->PutWorker(SlotOf(start.worker_id));
      table->PutWaiting(MakeWaiting());
    }
    return Waiting(result);
  }

  static size_t Waiting(const PlanResult& result) { return static_cast<size_t>(result.waiting); }

  template <class F>
  void Measure(const char* name, int rounds, F one) {
    std::vector<double> millis;
    size_t waits = 0;
    for (int i = 0; i < rounds; ++i) {
      nanos_ = -1;
      const int64_t begin = clock_.BootNanos();
      waits += one();
      const int64_t whole = clock_.BootNanos() - begin;
      millis.push_back(static_cast<double>(nanos_ >= 0 ? nanos_ : whole) / 1e6);
    }
    LH_CHECK(waits > 0);
    std::sort(millis.begin(), millis.end());
    const auto at = [&](double part) { return millis[static_cast<size_t>(part * static_cast<double>(rounds - 1))]; };
    std::printf("%-34s n %4d  p50 %7.3f ms  p99 %7.3f ms  worst %7.3f ms\n", name, rounds, at(0.5), at(0.99), at(1));
  }

  const Options options_;
  const RealClock clock_;
  uint64_t draws_ = 0;
  PlanTime now_{1'700'000'000 * kSecond, 1'000'000 * kSecond};
  std::vector<std::shared_ptr<const JobDemands>> shapes_;
  std::deque<Job> jobs_;
  Snapshot snapshot_;
  int64_t begin_nanos_ = 0;
  int64_t nanos_ = -1;
};

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const int value = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--jobs") == 0) options.jobs = value;
    if (std::strcmp(argv[i], "--workers") == 0) options.workers = value;
    if (std::strcmp(argv[i], "--rounds") == 0) options.rounds = value;
    if (std::strcmp(argv[i], "--shapes") == 0) options.shapes = value;
    if (std::strcmp(argv[i], "--seed") == 0) options.seed = static_cast<uint64_t>(value);
  }
  Bench(options).Run();
  return 0;
}

}  // namespace
}  // namespace longhaul::server

int main(int argc, char** argv) { return longhaul::server::Main(argc, argv); }
