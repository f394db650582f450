// How many jobs a second become durable: 64 clients, each on a connection of its own, create one job after the other
// over gRPC, while every fsync takes 1 ms longer than the disk takes. Each answer is awaited, and comes after its
// commit.
//   durable_creates_bench [SECONDS] [CLIENTS] [FSYNC_DELAY_US]      default 10 64 1000
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "base/disk_seam.h"
#include "tests/bench/bench_server.h"

namespace longhaul::server {
namespace {

class SlowSyncs final : public DiskSeam {
 public:
  explicit SlowSyncs(int delay_us) : delay_us_(delay_us) { InstallDiskSeam(this); }
  ~SlowSyncs() override { InstallDiskSeam(nullptr); }
  int Before(const DiskChange& change) override {
    if (change.kind == DiskChange::Kind::kWrite) {
      (change.path.ends_with("-wal") ? log_bytes_ : other_bytes_) += static_cast<int64_t>(change.bytes.size());
    }
    if (change.kind != DiskChange::Kind::kSyncFile && change.kind != DiskChange::Kind::kSyncDir) return 0;
    ++syncs_;
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us_));
    return 0;
  }
  int64_t syncs() const { return syncs_; }
  int64_t log_bytes() const { return log_bytes_; }      // SQLite's write-ahead log
  int64_t other_bytes() const { return other_bytes_; }  // the database, when the log goes back into it

 private:
  const int delay_us_;
  std::atomic<int64_t> syncs_{0};
  std::atomic<int64_t> log_bytes_{0};
  std::atomic<int64_t> other_bytes_{0};
};

int Main(int seconds, int clients, int delay_us) {
  BenchServer bench;
  FakeAgent agent(bench.stubs.get());
  LH_CHECK(agent.Open().ok());
  bench.Upload(BenchServer::Dataset());
  std::vector<std::unique_ptr<v1::FineTuneService::Stub>> stubs;
  for (int i = 0; i < clients; ++i)
    stubs.push_back(v1::FineTuneService::NewStub(OwnChannel(bench.server->grpc_port())));

  SlowSyncs slow(delay_us);
  const double commits_before = bench.Metric("longhaul_db_commits_total");
  const double created_before = bench.Metric("longhaul_jobs_created_total");
  std::atomic<bool> stop = false;
  std::vector<std::vector<double>> latencies_ms(static_cast<size_t>(clients));
  const int64_t begin = bench.clock.BootNanos();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < clients; ++i) {
      threads.emplace_back([&, i] {
        for (int n = 0; !stop; ++n) {
          v1::CreateFineTuneJobRequest request = BenchServer::Request();
          request.set_request_id("client-" + std::to_string(i) + "-" + std::to_string(n));
          v1::Job job;
          const int64_t sent = bench.clock.BootNanos();
          const grpc::Status status =
              Call(*stubs[static_cast<size_t>(i)], &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job);
          LH_CHECK(status.ok(), status.error_message());
          latencies_ms[static_cast<size_t>(i)].push_back(static_cast<double>(bench.clock.BootNanos() - sent) / 1e6);
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::seconds(seconds));
    stop = true;
  }
  const double elapsed = static_cast<double>(bench.clock.BootNanos() - begin) / 1e9;
  std::vector<double> all;
  for (const auto& some : latencies_ms) all.insert(all.end(), some.begin(), some.end());
  const double commits = bench.Metric("longhaul_db_commits_total") - commits_before;
  const double created = bench.Metric("longhaul_jobs_created_total") - created_before;
  std::printf("%d clients, %d us added to each fsync, %.1f s\n", clients, delay_us, elapsed);
  std::printf("durable creates        %.0f = %.0f/s\n", created, created / elapsed);
  std::printf("jobs a commit          %.1f (%.0f commits, %lld fsyncs)\n", created / commits, commits,
              static_cast<long long>(slow.syncs()));
  std::printf("written a commit       log %.0f KiB, database %.0f KiB\n",
              static_cast<double>(slow.log_bytes()) / commits / 1024,
              static_cast<double>(slow.other_bytes()) / commits / 1024);
  std::printf("latency                p50 %.1f ms, p99 %.1f ms\n", Percentile(all, 0.5), Percentile(all, 0.99));
  return created / elapsed >= 2000 && created / commits >= 10 ? 0 : 1;
}

}  // namespace
}  // namespace longhaul::server

int main(int argc, char** argv) {
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  return longhaul::server::Main(number(1, 10), number(2, 64), number(3, 1000));
}
