// What the heartbeats of 1,000 workers cost the scheduler: longhauld as a process of its own, whose CPU time /proc
// tells, and the workers' agents on callbacks in this one, each with a session of its own and a Sync parked at the
// scheduler, as worker/agent/session.h keeps it. First with nothing to run; then half of them run a job each and send a
// second Sync with a progress point every PROGRESS_MS.
//   heartbeats_bench [SECONDS] [WORKERS] [PROGRESS_MS]      default 30 1000 5000
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>

#include "tests/bench/bench_server.h"
#include "tests/bench/scheduler_process.h"

namespace longhaul::server {
namespace {

// One worker. Its calls end on gRPC's threads; everything else is called from the bench's own.
class Agent {
 public:
  Agent(Stubs* stubs, int number) : stub_(*stubs->workers), hello_(stubs, "worker-" + std::to_string(number)) {}

  void Open() {
    const v1::OpenSessionRequest hello = hello_.Hello(int64_t{8} << 30);
    v1::OpenSessionResponse response;
    const grpc::Status status = Call(stub_, &v1::WorkerService::Stub::OpenSession, hello, &response);
    LH_CHECK(status.ok(), status.error_message());
    session_ = response.session_id();
  }

  // A Sync, not awaited. Its answer sends the next one, unless another is parked.
  void Send() {
    auto call = std::make_shared<InFlight>();
    {
      std::lock_guard lock(mutex_);
      if (stopped_) return;
      call->request.set_session_id(session_);
      call->request.set_sync_number(++sync_number_);
      call->request.set_host_bytes_available(int64_t{8} << 30);
      call->request.set_disk_bytes_available(int64_t{100} << 30);
      for (const v1::AttemptStatus& attempt : attempts_) *call->request.add_attempts() = attempt;
      in_flight_.push_back(call);
    }
    stub_.async()->Sync(&call->context, &call->request, &call->response,
                        [this, call](const grpc::Status& status) { OnAnswer(call, status); });
  }

  // The next step of what runs; false: nothing does.
  bool Progress() {
    {
      std::lock_guard lock(mutex_);
      bool runs = false;
      for (v1::AttemptStatus& attempt : attempts_) {
        if (attempt.phase() != v1::ATTEMPT_PHASE_RUNNING) continue;
        attempt.clear_progress();
        v1::TrainingProgress* point = attempt.add_progress();
        point->set_attempt(static_cast<int32_t>(attempt.key().attempt()));
        point->set_step(++step_);
        point->set_total_steps(1'000'000);
        point->set_loss(1);
        point->set_step_seconds(1);
        point->set_trained_tokens(step_ * 100);
        runs = true;
      }
      if (!runs) return false;
    }
    Send();
    return true;
  }

  bool Runs() {
    std::lock_guard lock(mutex_);
    return std::any_of(attempts_.begin(), attempts_.end(),
                       [](const auto& attempt) { return attempt.phase() == v1::ATTEMPT_PHASE_RUNNING; });
  }

  void Stop() {
    std::unique_lock lock(mutex_);
    stopped_ = true;
    for (const auto& call : in_flight_) call->context.TryCancel();
    answered_.wait(lock, [this] { return in_flight_.empty(); });
  }
  static int64_t answers() { return answers_; }

 private:
  struct InFlight {
    grpc::ClientContext context;
    v1::SyncRequest request;
    v1::SyncResponse response;
  };

  void OnAnswer(const std::shared_ptr<InFlight>& call, const grpc::Status& status) {
    bool again = false;
    {
      std::lock_guard lock(mutex_);
      LH_CHECK(status.ok() || stopped_, status.error_message());
      ++answers_;
      for (const v1::WorkerCommand& command : call->response.commands()) Take(command);
      for (const v1::AttemptKey& key : call->response.acknowledged()) {
        std::erase_if(attempts_, [&](const auto& attempt) {
          return attempt.phase() == v1::ATTEMPT_PHASE_ENDED && attempt.key().job_id() == key.job_id();
        });
      }
      std::erase(in_flight_, call);
      again = in_flight_.empty() && !stopped_;
      if (in_flight_.empty()) answered_.notify_all();
    }
    if (again) Send();
  }

  // Validations end at once, with a report; the others run for ever.
  void Take(const v1::WorkerCommand& command) {
    if (!command.has_start()) return;
    v1::AttemptStatus status;
    *status.mutable_key() = command.start().key();
    status.set_phase(v1::ATTEMPT_PHASE_RUNNING);
    if (command.start().spec().kind() == v1::ATTEMPT_KIND_VALIDATE) {
      status.set_phase(v1::ATTEMPT_PHASE_ENDED);
      status.mutable_exit()->set_reason(v1::TRAINER_EXIT_SUCCEEDED);
      v1::DataReport* report = status.mutable_data_report();
      report->set_examples(10);
      report->set_tokens(1000);
      report->set_trained_tokens(500);
      report->set_longest_tokens(100);
      report->set_total_steps(1'000'000);
    }
    attempts_.push_back(status);
  }

  v1::WorkerService::Stub& stub_;
  FakeAgent hello_;
  static std::atomic<int64_t> answers_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable answered_;
  std::string session_;
  int64_t sync_number_ = 0;
  int64_t step_ = 0;
  bool stopped_ = false;
  std::vector<v1::AttemptStatus> attempts_;
  std::vector<std::shared_ptr<InFlight>> in_flight_;
};
std::atomic<int64_t> Agent::answers_{0};

struct Measured {
  double core = 0;     // part of one core
  double answers = 0;  // a second
};

template <class Each>
Measured Measure(pid_t pid, int seconds, const Clock& clock, Each each) {
  const double cpu = CpuSeconds(pid);
  const int64_t answers = Agent::answers();
  const int64_t begin = clock.BootNanos();
  while (clock.BootNanos() - begin < int64_t{seconds} * 1'000'000'000) each();
  const double elapsed = static_cast<double>(clock.BootNanos() - begin) / 1e9;
  return {(CpuSeconds(pid) - cpu) / elapsed, static_cast<double>(Agent::answers() - answers) / elapsed};
}

void CreateJobs(int port, int jobs) {
  BenchServer::UploadTo(Stubs(port).blobs.get(), BenchServer::Dataset());
  const auto stub = v1::FineTuneService::NewStub(OwnChannel(port));
  for (int i = 0; i < jobs; ++i) {
    v1::CreateFineTuneJobRequest request = BenchServer::Request();
    request.mutable_spec()->mutable_hyperparameters()->set_max_steps(1'000'000);
    v1::Job job;
    const grpc::Status status = Call(*stub, &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job);
    LH_CHECK(status.ok(), status.error_message());
  }
}

int Main(int seconds, int workers, int progress_ms) {
  const RealClock clock;
  const TempDir dir;
  const SchedulerProcess scheduler = StartSchedulerProcess(dir.path(), {});
  // Some connections, as hosts have; a worker each would only cost this process more.
  constexpr int kConnections = 50;
  std::vector<std::unique_ptr<Stubs>> stubs;
  for (int i = 0; i < kConnections; ++i) stubs.push_back(std::make_unique<Stubs>(OwnChannel(scheduler.port)));
  std::deque<Agent> agents;
  for (int i = 0; i < workers; ++i) agents.emplace_back(stubs[static_cast<size_t>(i % kConnections)].get(), i);
  for (Agent& agent : agents) agent.Open();
  for (Agent& agent : agents) agent.Send();
  const auto rest = [](int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
  rest(2'000);
  const Measured idle = Measure(scheduler.pid, seconds, clock, [&] { rest(100); });
  std::printf("%d idle workers          %.1f%% of a core, %.0f Syncs/s\n", workers, idle.core * 100, idle.answers);
  CreateJobs(scheduler.port, workers / 2);
  const auto running = [&] {
    return std::count_if(agents.begin(), agents.end(), [](Agent& agent) { return agent.Runs(); });
  };
  while (running() < workers / 4) rest(100);
  rest(2'000);
  // Spread over the time between two of one worker.
  size_t next = 0;
  const int64_t begin = clock.BootNanos();
  int64_t sent = 0;
  const Measured busy = Measure(scheduler.pid, seconds, clock, [&] {
    const int64_t due = (clock.BootNanos() - begin) / 1'000'000 * workers / progress_ms;
    for (; sent < due; ++sent) agents[next++ % agents.size()].Progress();
    rest(5);
  });
  std::printf("%d workers, %ld busy      %.1f%% of a core, %.0f Syncs/s\n", workers, static_cast<long>(running()),
              busy.core * 100, busy.answers);
  for (Agent& agent : agents) agent.Stop();
  ::kill(scheduler.pid, SIGTERM);
  ::waitpid(scheduler.pid, nullptr, 0);
  return idle.core < 0.1 && busy.core < 0.1 ? 0 : 1;
}

}  // namespace
}  // namespace longhaul::server

int main(int argc, char** argv) {
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  return longhaul::server::Main(number(1, 30), number(2, 1000), number(3, 5000));
}
