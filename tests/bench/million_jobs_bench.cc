// A store with a million finished jobs: how long a restart takes, how long List takes, how much memory the scheduler
// has. Fills FOLDER once through the store's own statements (kept for the next run), starts the longhauld of this
// build on it as a process, and asks it over gRPC. While it fills nothing is synced and much is cached: a machine that
// fails then has to begin again.
//   million_jobs_bench FOLDER [JOBS] [LISTS_PER_QUERY]      default 1000000 200
// A job: 8 events, 1 attempt, 2 labels, 1 request key, 3 blobs (rows; no files), metrics of 40 steps; every 500th job
// had 100,000 steps, of which every 40th was told, thinned to limits::kMaxMetricsPointsTerminal as it ended.
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <functional>

#include "base/limits.h"
#include "longhaul/v1/job.pb.h"
#include "storage/job_store.h"
#include "storage/job_writer.h"
#include "storage/sqlite_db.h"
#include "tests/bench/bench_server.h"
#include "tests/bench/scheduler_process.h"

namespace longhaul::server {
namespace {

constexpr int64_t kFirstWallMicros = 1'700'000'000'000'000;
constexpr int64_t kMicrosBetweenJobs = 20'000'000;
constexpr int kJobsPerCommit = 50'000;
constexpr int kLongRunEvery = 500;
constexpr int64_t kLongRunSteps = 100'000;
constexpr int64_t kStepsBetweenPoints = 40;  // of a long run

JobState StateOf(int64_t number) {
  return number % 50 == 0 ? JobState::kFailed : number % 70 == 0 ? JobState::kCancelled : JobState::kSucceeded;
}

Job MakeJob(int64_t number) {
  const std::string n = std::to_string(number);
  Job job;
  // As random ids are: spread over the index.
  job.id = "ftjob-" + Sha256Hex(n).substr(0, 20);
  job.project = "project-" + std::to_string(number % 20);
  job.request_id = "request-" + n;
  job.labels = {{"team", "team-" + std::to_string(number % 10)},
                {"experiment", "experiment-" + std::to_string(number / 5'000)}};
  v1::JobSpec spec = BenchServer::Request().spec();
  spec.set_model("model-" + std::to_string(number % 40));
  job.spec = spec.SerializeAsString();
  job.resolved_spec = job.spec;
  job.model = spec.model();
  job.model_digest = Sha256Hex(job.model);
  job.inputs = {{Sha256Hex("dataset" + std::to_string(number / 10)), 1'000'000}};
  job.create_wall_micros = kFirstWallMicros + number * kMicrosBetweenJobs;
  job.create_number = static_cast<uint64_t>(number);
  job.train_shape.sequence_length = 4096;
  job.total_steps = number % kLongRunEvery == 0 ? kLongRunSteps : 40;
  job.state = StateOf(number);
  job.validated = true;
  job.lease_epoch = 2;
  job.attempts = 2;
  job.start_wall_micros = job.create_wall_micros + 1'000'000;
  job.end_wall_micros = job.create_wall_micros + 600'000'000;
  job.sequence = 8;
  job.attempt.number = 2;
  job.attempt.kind = AttemptKind::kTrain;
  job.attempt.worker_id = "worker-" + std::to_string(number % 100);
  job.attempt.device_class = "cpu-avx512-8t";
  job.attempt.lease_epoch = 2;
  job.attempt.start_wall_micros = job.start_wall_micros;
  job.attempt.end_wall_micros = job.end_wall_micros;
  job.attempt.outcome = job.state == JobState::kSucceeded ? AttemptOutcome::kSucceeded : AttemptOutcome::kFailed;
  if (job.state == JobState::kSucceeded) {
    job.artifact = {{"adapter_model.safetensors", {Sha256Hex("a" + n), 20'000'000}},
                    {"adapter_config.json", {Sha256Hex("c" + n), 700}}};
    job.artifact_wall_micros = job.end_wall_micros;
  } else if (job.state == JobState::kFailed) {
    job.failure = {Reason::kNonFiniteLoss, "the loss is not finite at step 17", true, std::string(2'000, 'l')};
  }
  return job;
}

std::string ProgressOf(int64_t step) {
  v1::TrainingProgress progress;
  progress.set_attempt(2);
  progress.set_step(step);
  progress.set_total_steps(100'000);
  progress.set_loss(1.0 / static_cast<double>(step));
  progress.set_learning_rate(2e-4);
  progress.set_tokens_per_second(300);
  progress.set_trained_tokens(step * 1'024);
  return progress.SerializeAsString();
}

absl::Status PutFinishedJob(StoreTransaction* tx, int64_t number) {
  const Job job = MakeJob(number);
  absl::Status status = tx->PutJob(job);
  for (const BlobRef& blob : job.inputs) status.Update(tx->PutBlob(blob, job.create_wall_micros));
  for (const NamedBlob& file : job.artifact) status.Update(tx->PutBlob(file.blob, job.create_wall_micros));
  for (int64_t sequence = 1; sequence <= job.sequence; ++sequence) {
    JobEvent event;
    event.sequence = sequence;
    event.wall_micros = job.create_wall_micros + sequence * 1'000'000;
    event.state = sequence == job.sequence ? job.state : JobState::kRunning;
    event.message = "event " + std::to_string(sequence) + " of a job, with a sentence about what happened";
    status.Update(tx->AddEvent(job.id, event));
  }
  status.Update(tx->PutAttempt(job.id, job.attempt));
  status.Update(tx->PutRequestKey({job.project, job.request_id, job.model_digest, job.id, job.create_wall_micros}));
  std::vector<MetricPoint> points;
  const int64_t between = job.total_steps == kLongRunSteps ? kStepsBetweenPoints : 1;
  for (int64_t step = between; step <= job.total_steps; step += between) {
    points.push_back({2, step, ProgressOf(step), 0, 0});
  }
  status.Update(tx->PutMetrics(job.id, points));
  status.Update(tx->ThinMetrics(job.id, limits::kMaxMetricsPointsTerminal));
  return status;
}

// The store's schema, and its statements on a connection that does not sync.
void Fill(const std::string& folder, int64_t jobs) {
  {
    const auto store = storage::OpenJobStore(folder);
    LH_CHECK(store.ok(), std::string(store.status().message()));
  }
  auto db = storage::Db::Open(JoinPath(folder, "state.db"), storage::Db::Mode::kReadWrite);
  LH_CHECK(db.ok(), std::string(db.status().message()));
  LH_CHECK((*db)->Exec("PRAGMA synchronous=OFF; PRAGMA cache_size=-4000000; PRAGMA wal_autocheckpoint=100000").ok());
  const RealClock clock;
  const int64_t begin = clock.BootNanos();
  const int64_t there = *(*db)->QueryInt("SELECT IFNULL(MAX(create_number), 0) FROM jobs");
  for (int64_t number = there + 1; number <= jobs;) {
    const auto tx = storage::BeginJobTransaction(db->get());
    LH_CHECK(tx.ok());
    for (int i = 0; i < kJobsPerCommit && number <= jobs; ++i, ++number) {
      const absl::Status status = PutFinishedJob(tx->get(), number);
      LH_CHECK(status.ok(), std::string(status.message()));
    }
    LH_CHECK((*tx)->Commit().ok());
    // Long: it may be stopped and goes on where it was.
    std::fprintf(stderr, "%lld jobs, %.0f s\n", static_cast<long long>(number - 1),
                 static_cast<double>(clock.BootNanos() - begin) / 1e9);
  }
  LH_CHECK((*db)->Exec("PRAGMA wal_checkpoint(TRUNCATE)").ok());
}

struct Query {
  const char* name;
  std::function<void(v1::ListFineTuneJobsRequest*, int)> fill;
};

void SetTime(google::protobuf::Timestamp* time, int64_t number) {
  time->set_seconds((kFirstWallMicros + number * kMicrosBetweenJobs) / 1'000'000);
}

std::vector<Query> Queries(int64_t jobs) {
  using Request = v1::ListFineTuneJobsRequest;
  return {
      {"newest", [](Request*, int) {}},
      {"oldest first", [](Request* r, int) { r->set_oldest_first(true); }},
      {"state FAILED", [](Request* r, int) { r->add_states(v1::FAILED); }},
      {"two states",
       [](Request* r, int) {
         r->add_states(v1::FAILED);
         r->add_states(v1::CANCELLED);
       }},
      {"live states (none)",
       [](Request* r, int) {
         r->add_states(v1::RUNNING);
         r->add_states(v1::QUEUED);
       }},
      {"model", [](Request* r, int i) { r->set_model("model-" + std::to_string(i % 40)); }},
      {"common label", [](Request* r, int i) { (*r->mutable_labels())["team"] = "team-" + std::to_string(i % 10); }},
      {"rare label",
       [](Request* r, int i) { (*r->mutable_labels())["experiment"] = "experiment-" + std::to_string(i % 20); }},
      // "team" is on every job of every project; half of these are of a project that has not that team.
      {"label in a project",
       [](Request* r, int i) {
         r->set_project("project-" + std::to_string(i % 20));
         (*r->mutable_labels())["team"] = "team-" + std::to_string(i % 10 + i / 20 % 2);
       }},
      {"label of none", [](Request* r, int) { (*r->mutable_labels())["experiment"] = "never"; }},
      {"label and state",
       [](Request* r, int i) {
         (*r->mutable_labels())["team"] = "team-" + std::to_string(i % 10);
         r->add_states(v1::CANCELLED);
       }},
      {"label and live states (none)",
       [](Request* r, int i) {
         (*r->mutable_labels())["team"] = "team-" + std::to_string(i % 10);
         r->add_states(v1::RUNNING);
         r->add_states(v1::QUEUED);
       }},
      // Each common; half of these have no job in common.
      {"label and model",
       [](Request* r, int i) {
         (*r->mutable_labels())["team"] = "team-" + std::to_string((i + i / 40) % 10);
         r->set_model("model-" + std::to_string(i % 40));
       }},
      {"model and state",
       [](Request* r, int i) {
         r->set_model("model-" + std::to_string(i % 40));
         r->add_states(v1::FAILED);
       }},
      {"created before", [=](Request* r, int i) { SetTime(r->mutable_created_before(), jobs / 2 + i * 37); }},
      {"created in an hour",
       [=](Request* r, int i) {
         SetTime(r->mutable_created_after(), jobs / 3 + i * 101);
         SetTime(r->mutable_created_before(), jobs / 3 + i * 101 + 180);
       }},
      {"model and time",
       [=](Request* r, int i) {
         r->set_model("model-" + std::to_string(i % 40));
         SetTime(r->mutable_created_before(), jobs / 4 + i * 53);
       }},
      {"id prefix",
       [](Request* r, int i) { r->set_id_prefix("ftjob-" + Sha256Hex(std::to_string(1 + i)).substr(0, 5)); }},
  };
}

int64_t Ask(v1::FineTuneService::Stub* stub, const v1::ListFineTuneJobsRequest& request,
            v1::ListFineTuneJobsResponse* response, const Clock& clock) {
  const int64_t begin = clock.BootNanos();
  const grpc::Status status = Call(*stub, &v1::FineTuneService::Stub::ListFineTuneJobs, request, response);
  LH_CHECK(status.ok(), status.error_message());
  return clock.BootNanos() - begin;
}

// With the seconds to the first answered List.
SchedulerProcess StartScheduler(const std::string& folder, const Clock& clock, double* seconds) {
  const int64_t begin = clock.BootNanos();
  const SchedulerProcess running = StartSchedulerProcess(folder, {});
  const auto stub = v1::FineTuneService::NewStub(OwnChannel(running.port));
  v1::ListFineTuneJobsResponse response;
  Ask(stub.get(), {}, &response, clock);
  *seconds = static_cast<double>(clock.BootNanos() - begin) / 1e9;
  return running;
}

int Main(const std::string& folder, int64_t jobs, int lists) {
  Fill(folder, jobs);
  const RealClock clock;
  std::printf("database %.2f GiB\n", static_cast<double>(*FileSize(JoinPath(folder, "state.db"))) / (1 << 30));
  double seconds = 0;
  SchedulerProcess running = StartScheduler(folder, clock, &seconds);
  std::printf("restart to serving     %.2f s (to the first answered List)\n", seconds);
  const auto stub = v1::FineTuneService::NewStub(OwnChannel(running.port));
  std::vector<double> all_ms;
  bool ok = seconds < 5;
  for (const Query& query : Queries(jobs)) {
    std::vector<double> some_ms;
    size_t rows = 0;
    std::string token;
    for (int i = 0; i < lists; ++i) {
      v1::ListFineTuneJobsRequest request;
      request.set_project("-");  // of all, but for queries that name one
      query.fill(&request, i);
      // Half of them turn a page.
      v1::ListFineTuneJobsResponse response;
      some_ms.push_back(static_cast<double>(Ask(stub.get(), request, &response, clock)) / 1e6);
      rows += static_cast<size_t>(response.jobs_size());
      if (response.next_page_token().empty() || i % 2 == 0) continue;
      request.set_page_token(response.next_page_token());
      some_ms.push_back(static_cast<double>(Ask(stub.get(), request, &response, clock)) / 1e6);
    }
    std::printf("List, %-20s p50 %6.2f ms, p99 %6.2f ms, %.0f rows\n", query.name, Percentile(some_ms, 0.5),
                Percentile(some_ms, 0.99), static_cast<double>(rows) / lists);
    all_ms.insert(all_ms.end(), some_ms.begin(), some_ms.end());
    ok = ok && Percentile(some_ms, 0.99) < 50;
  }
  std::printf("List, all              p50 %6.2f ms, p99 %6.2f ms\n", Percentile(all_ms, 0.5), Percentile(all_ms, 0.99));
  const int64_t begin = clock.BootNanos();
  Fetch(running.http_port, "/metrics");
  Fetch(running.http_port, "/");
  std::printf("page and /metrics      %.1f ms\n", static_cast<double>(clock.BootNanos() - begin) / 1e6);
  const double peak_mib = StatusMib(running.pid, "VmHWM");
  std::printf("memory                 RSS %.0f MiB, peak %.0f MiB\n", StatusMib(running.pid, "VmRSS"), peak_mib);
  ok = ok && peak_mib < 300;
  // Killed, and up again.
  ::kill(running.pid, SIGKILL);
  ::waitpid(running.pid, nullptr, 0);
  running = StartScheduler(folder, clock, &seconds);
  std::printf("after kill -9          %.2f s to serving\n", seconds);
  ::kill(running.pid, SIGTERM);
  ::waitpid(running.pid, nullptr, 0);
  return ok && seconds < 5 ? 0 : 1;
}

}  // namespace
}  // namespace longhaul::server

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: million_jobs_bench FOLDER [JOBS] [LISTS_PER_QUERY]\n");
    return 2;
  }
  return longhaul::server::Main(argv[1], argc > 2 ? std::atoll(argv[2]) : 1'000'000,
                                argc > 3 ? std::atoi(argv[3]) : 200);
}
