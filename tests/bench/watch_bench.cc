// How far Watch reaches: 1,000 watchers, 10 a job, each of whose jobs makes 20 messages a second (18 progress points
// and 2 events), then 100 watchers of one job that makes 1,000 progress points and 2 events a second. All over gRPC in
// one process. Of events every sequence number has to come once, in order; the time is from the event's own (the
// scheduler's clock, before its commit) to the client that has read it.
//   watch_bench [SECONDS] [WATCHERS]      default 10 1000
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "tests/bench/bench_server.h"

namespace longhaul::server {
namespace {

constexpr int kWatchersAJob = 10;

// One stream, read by gRPC's own threads.
class Watcher final : public grpc::ClientReadReactor<v1::WatchFineTuneJobResponse> {
 public:
  Watcher(v1::FineTuneService::Stub* stub, const std::string& id, const Clock* clock) : clock_(clock) {
    request_.set_id(id);
    stub->async()->WatchFineTuneJob(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    switch (response_.message_case()) {
      case v1::WatchFineTuneJobResponse::kSnapshot:
        sequence_ = response_.snapshot().sequence();
        begun_ = true;
        break;
      case v1::WatchFineTuneJobResponse::kEvent:
        Note(response_.event());
        break;
      case v1::WatchFineTuneJobResponse::kProgress:
        ++progress_;
        break;
      default:
        break;
    }
    StartRead(&response_);
  }
  void OnDone(const grpc::Status&) override { done_ = true; }
  void Cancel() { context_.TryCancel(); }

  bool begun() const { return begun_; }
  bool done() const { return done_; }
  int64_t events() const { return events_; }
  int64_t progress() const { return progress_; }
  int64_t gaps() const { return gaps_; }
  int64_t duplicates() const { return duplicates_; }
  int64_t sequence() const { return sequence_; }
  std::vector<double> latencies_ms() {
    std::lock_guard lock(mutex_);
    return latencies_ms_;
  }

 private:
  void Note(const v1::JobEvent& event) {
    ++events_;
    if (event.sequence() <= sequence_) ++duplicates_;
    if (event.sequence() > sequence_ + 1) ++gaps_;
    sequence_ = event.sequence();
    const int64_t sent_micros = event.time().seconds() * 1'000'000 + event.time().nanos() / 1'000;
    std::lock_guard lock(mutex_);
    latencies_ms_.push_back(static_cast<double>(clock_->WallMicros() - sent_micros) / 1e3);
  }

  const Clock* clock_;
  grpc::ClientContext context_;
  v1::WatchFineTuneJobRequest request_;
  v1::WatchFineTuneJobResponse response_;
  std::atomic<bool> begun_{false};
  std::atomic<bool> done_{false};
  std::atomic<int64_t> events_{0};
  std::atomic<int64_t> progress_{0};
  std::atomic<int64_t> gaps_{0};
  std::atomic<int64_t> duplicates_{0};
  std::atomic<int64_t> sequence_{0};
  std::mutex mutex_;  // guards latencies_ms_
  std::vector<double> latencies_ms_;
};

// A worker with room for every job, and the attempts that it runs.
class BusyWorker {
 public:
  explicit BusyWorker(BenchServer* bench) : bench_(bench), agent_(bench->stubs.get()) {
    v1::OpenSessionRequest hello = agent_.Hello(int64_t{4} << 40);
    hello.mutable_inventory()->set_cpu_threads_total(1'000);
    v1::OpenSessionResponse response;
    LH_CHECK(Call(*bench->stubs->workers, &v1::WorkerService::Stub::OpenSession, hello, &response).ok());
    session_ = response.session_id();
  }

  ~BusyWorker() {
    std::unique_lock lock(mutex_);
    for (const auto& report : reports_) report->context.TryCancel();
    answered_.wait(lock, [&] { return reports_.empty(); });
  }

  // Takes what is to be started, validates at once, and runs, until `jobs` run.
  void RunAll(size_t jobs) {
    while (running_.size() < jobs) {
      v1::SyncResponse response;
      const grpc::Status status =
          Call(*bench_->stubs->workers, &v1::WorkerService::Stub::Sync, Status(0, false), &response);
      LH_CHECK(status.ok(), status.error_message());
      Take(response);
    }
  }

  // One Sync of all attempts: `points` new steps of each, and perhaps something to warn of. Not awaited, as an agent
  // does not: the scheduler parks it until there is a command or a newer one.
  void Report(int points, bool warn) {
    auto report = std::make_unique<InFlight>();
    InFlight* const sent = report.get();
    sent->request = Status(points, warn);
    {
      std::lock_guard lock(mutex_);
      reports_.push_back(std::move(report));
    }
    bench_->stubs->workers->async()->Sync(
        &sent->context, &sent->request, &sent->response, [this, sent](const grpc::Status& status) {
          LH_CHECK(status.ok() || status.error_code() == grpc::StatusCode::CANCELLED, status.error_message());
          std::lock_guard lock(mutex_);
          std::erase_if(reports_, [&](const auto& r) { return r.get() == sent; });
          answered_.notify_all();
        });
  }

 private:
  struct InFlight {
    grpc::ClientContext context;
    v1::SyncRequest request;
    v1::SyncResponse response;
  };
  struct Run {
    v1::AttemptKey key;
    int64_t step = 0;
    int warnings = 0;
  };

  v1::SyncRequest Status(int points, bool warn) {
    v1::SyncRequest request;
    request.set_session_id(session_);
    request.set_sync_number(++sync_number_);
    request.set_host_bytes_available(int64_t{4} << 40);
    request.set_disk_bytes_available(int64_t{100} << 30);
    std::vector<v1::AttemptKey> validating;
    validating.swap(validating_);
    for (const v1::AttemptKey& key : validating) {
      v1::AttemptStatus* status = request.add_attempts();
      *status->mutable_key() = key;
      status->set_phase(v1::ATTEMPT_PHASE_ENDED);
      status->mutable_exit()->set_reason(v1::TRAINER_EXIT_SUCCEEDED);
      v1::DataReport* report = status->mutable_data_report();
      report->set_examples(10);
      report->set_tokens(1'000);
      report->set_longest_tokens(100);
      report->set_total_steps(1'000'000);
    }
    for (auto& [id, run] : running_) {
      v1::AttemptStatus* status = request.add_attempts();
      *status->mutable_key() = run.key;
      status->set_phase(v1::ATTEMPT_PHASE_RUNNING);
      for (int i = 0; i < points; ++i) {
        v1::TrainingProgress* progress = status->add_progress();
        progress->set_attempt(run.key.attempt());
        progress->set_step(++run.step);
        progress->set_loss(1.0);
      }
      if (warn) status->add_warnings("warning " + std::to_string(++run.warnings));
    }
    return request;
  }

  void Take(const v1::SyncResponse& response) {
    for (const v1::WorkerCommand& command : response.commands()) {
      if (!command.has_start()) continue;
      const v1::AttemptKey& key = command.start().key();
      if (command.start().spec().kind() == v1::ATTEMPT_KIND_VALIDATE) {
        validating_.push_back(key);
      } else {
        running_[key.job_id()].key = key;
      }
    }
  }

  BenchServer* bench_;
  FakeAgent agent_;
  std::string session_;
  int64_t sync_number_ = 0;
  std::vector<v1::AttemptKey> validating_;
  std::map<std::string, Run> running_;
  std::mutex mutex_;  // guards reports_
  std::condition_variable answered_;
  std::vector<std::unique_ptr<InFlight>> reports_;
};

// `jobs` jobs, `watchers` watchers over them; each job makes `points` points 20 times a second, and 2 events a second.
bool Measure(const char* name, int jobs, int watchers, int points, int seconds) {
  BenchServer bench;
  BusyWorker worker(&bench);
  bench.Upload(BenchServer::Dataset());
  std::vector<std::string> ids;
  for (int i = 0; i < jobs; ++i) {
    v1::CreateFineTuneJobRequest request = BenchServer::Request();
    request.mutable_spec()->mutable_resources()->set_cpu_threads(1);
    request.mutable_spec()->mutable_resources()->set_device_share(v1::DEVICE_SHARE_FIT);
    v1::Job job;
    const grpc::Status status = Call(*bench.stubs->jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job);
    LH_CHECK(status.ok(), status.error_message());
    ids.push_back(job.id());
  }
  worker.RunAll(ids.size());
  // A connection for every hundred streams, as gRPC advises.
  std::vector<std::unique_ptr<v1::FineTuneService::Stub>> stubs;
  std::vector<std::unique_ptr<Watcher>> all;
  for (int i = 0; i < watchers; ++i) {
    if (i % 100 == 0) stubs.push_back(v1::FineTuneService::NewStub(OwnChannel(bench.server->grpc_port())));
    all.push_back(std::make_unique<Watcher>(stubs.back().get(), ids[static_cast<size_t>(i % jobs)], &bench.clock));
  }
  for (const auto& watcher : all) {
    while (!watcher->begun()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const int64_t begin = bench.clock.BootNanos();
  constexpr int64_t kTickNanos = 50'000'000;
  const int ticks = seconds * 20;
  for (int tick = 0; tick < ticks; ++tick) {
    worker.Report(points, tick % 10 == 0);
    const int64_t next = begin + (tick + 1) * kTickNanos;
    const int64_t wait = next - bench.clock.BootNanos();
    if (wait > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(wait));
  }
  const double elapsed = static_cast<double>(bench.clock.BootNanos() - begin) / 1e9;
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  std::vector<double> latencies_ms;
  int64_t events = 0, progress = 0, gaps = 0, duplicates = 0, fewest = INT64_MAX;
  for (const auto& watcher : all) {
    const std::vector<double> some = watcher->latencies_ms();
    latencies_ms.insert(latencies_ms.end(), some.begin(), some.end());
    events += watcher->events();
    progress += watcher->progress();
    gaps += watcher->gaps();
    duplicates += watcher->duplicates();
    fewest = std::min(fewest, watcher->events());
  }
  for (const auto& watcher : all) watcher->Cancel();
  for (const auto& watcher : all) {
    while (!watcher->done()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const double p99 = Percentile(latencies_ms, 0.99);
  std::printf("%s: %d watchers, %d jobs, %.1f s\n", name, watchers, jobs, elapsed);
  std::printf("  messages             %.0f/s (%.1f/s a watcher; %lld events, %lld progress)\n",
              static_cast<double>(events + progress) / elapsed,
              static_cast<double>(events + progress) / elapsed / watchers, static_cast<long long>(events),
              static_cast<long long>(progress));
  std::printf("  events               %lld gaps, %lld duplicates, %lld at the watcher with the fewest\n",
              static_cast<long long>(gaps), static_cast<long long>(duplicates), static_cast<long long>(fewest));
  std::printf("  event to reader      p50 %.1f ms, p99 %.1f ms\n", Percentile(latencies_ms, 0.5), p99);
  return gaps == 0 && duplicates == 0 && fewest >= 2 * seconds && p99 < 100;
}

}  // namespace
}  // namespace longhaul::server

int main(int argc, char** argv) {
  const int seconds = argc > 1 ? std::atoi(argv[1]) : 10;
  const int watchers = argc > 2 ? std::atoi(argv[2]) : 1000;
  using longhaul::server::Measure;
  const bool many = Measure("many", std::max(1, watchers / longhaul::server::kWatchersAJob), watchers, 1, seconds);
  const bool one = Measure("one job", 1, 100, 50, seconds);
  return many && one ? 0 : 1;
}
