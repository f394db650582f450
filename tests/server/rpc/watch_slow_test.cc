// The watch stream against a store and a publisher that the test plays itself: readers that are too slow, gaps between
// what is published, deletion.
#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "server/request_stats.h"
#include "server/rpc/event_hub.h"
#include "server/rpc/watch_reactor.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

using Message = v1::WatchFineTuneJobResponse;
constexpr char kId[] = "ftjob-test";

// One job and its events; a watch asks for nothing else.
class OneJobStore final : public Store, public StoreWriter {
 public:
  absl::StatusOr<Job> GetJob(const std::string&) override {
    std::lock_guard lock(mutex_);
    if (deleted_) return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "there is no such job");
    return job_;
  }
  absl::StatusOr<std::vector<JobEvent>> ListEvents(const std::string&, int64_t after, int most) override {
    std::lock_guard lock(mutex_);
    ++event_reads_;
    std::vector<JobEvent> out;
    for (const JobEvent& event : events_) {
      if (event.sequence > after && out.size() < static_cast<size_t>(most)) out.push_back(event);
    }
    return out;
  }
  JobEvent Commit(JobState state, const std::string& message) {
    std::lock_guard lock(mutex_);
    JobEvent event;
    event.sequence = ++job_.sequence;
    event.type = IsTerminal(state) ? EventType::kState : EventType::kWarning;
    event.state = job_.state = state;
    event.message = message;
    events_.push_back(event);
    return event;
  }
  void ForgetBefore(int64_t sequence) {
    std::lock_guard lock(mutex_);
    std::erase_if(events_, [&](const JobEvent& event) { return event.sequence < sequence; });
  }
  void Delete() {
    std::lock_guard lock(mutex_);
    deleted_ = true;
    events_.clear();
  }
  int event_reads() {
    std::lock_guard lock(mutex_);
    return event_reads_;
  }
  Job job() {
    std::lock_guard lock(mutex_);
    return job_;
  }

  StoreWriter& Writer() override { return *this; }
  absl::StatusOr<std::unique_ptr<StoreTransaction>> Begin() override { return Unasked(); }
  absl::StatusOr<JobPage> ListJobs(const JobFilter&) override { return Unasked(); }
  absl::StatusOr<std::optional<RequestKey>> GetRequestKey(const std::string&, const std::string&) override {
    return Unasked();
  }
  absl::StatusOr<std::vector<Attempt>> ListAttempts(const std::string&) override { return Unasked(); }
  absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(const std::string&) override { return Unasked(); }
  absl::StatusOr<std::vector<MetricPoint>> ListMetrics(const std::string&, int64_t, int) override { return Unasked(); }
  absl::StatusOr<std::vector<Worker>> ListWorkers() override { return Unasked(); }
  absl::StatusOr<bool> HasBlob(const BlobRef&) override { return Unasked(); }
  absl::StatusOr<std::optional<int64_t>> IdleBlobGraceMicros(const BlobRef&) override { return Unasked(); }
  absl::StatusOr<bool> BlobInProject(const BlobRef&, const std::string&) override { return Unasked(); }
  absl::StatusOr<Uploads> Uploaded(const std::string&) override { return Unasked(); }
  absl::StatusOr<std::vector<std::string>> ListDeletedJobs(const std::string&, int) override { return Unasked(); }
  absl::StatusOr<std::vector<AuditRecord>> ListAudit(int64_t, int) override { return Unasked(); }
  absl::StatusOr<std::vector<Job>> LoadLiveJobs() override { return Unasked(); }
  absl::StatusOr<uint64_t> MaxCreateNumber() override { return Unasked(); }
  Sizes GetSizes() override { return {}; }

 private:
  static absl::Status Unasked() { return absl::UnimplementedError("a watch does not ask for this"); }
  std::mutex mutex_;
  Job job_ = [] {
    Job job;
    job.id = kId;
    return job;
  }();
  std::vector<JobEvent> events_;
  bool deleted_ = false;
  int event_reads_ = 0;
};

class NoTokens final : public TokenSource {
 public:
  absl::StatusOr<std::vector<TokenRecord>> TokensChangedAfter(int64_t) override { return std::vector<TokenRecord>(); }
};

class WatchOnly final : public v1::FineTuneService::WithCallbackMethod_WatchFineTuneJob<v1::FineTuneService::Service> {
 public:
  explicit WatchOnly(const WatchContext* context) : context_(context) {}
  grpc::ServerWriteReactor<Message>* WatchFineTuneJob(grpc::CallbackServerContext* call,
                                                      const v1::WatchFineTuneJobRequest* request) override {
    absl::StatusOr<StreamCaller> caller = AdmitStream(*context_->gate, *call, "FineTuneService/WatchFineTuneJob");
    return StartWatch(context_, *std::move(caller), request->id(),
                      request->has_after_sequence() ? std::optional<int64_t>(request->after_sequence()) : std::nullopt);
  }

 private:
  const WatchContext* context_;
};

class SlowWatchTest : public testing::Test {
 protected:
  SlowWatchTest() : service_(&context_) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stubs_.emplace(port);
    Publish(store_.Commit(JobState::kValidating, "created"));
  }
  ~SlowWatchTest() override {
    hub_.Shutdown();
    server_->Shutdown();
  }

  void Publish(const JobEvent& event) { hub_.OnEvent(store_.job(), event); }
  // Watching when it returns: the snapshot is read.
  void Watch(std::optional<int64_t> after = std::nullopt) {
    v1::WatchFineTuneJobRequest request;
    request.set_id(kId);
    if (after.has_value()) request.set_after_sequence(*after);
    reader_ = stubs_->jobs->WatchFineTuneJob(&call_, request);
    Message message;
    ASSERT_TRUE(reader_->Read(&message));
    ASSERT_TRUE(message.has_snapshot());
    snapshot_sequence_ = message.snapshot().sequence();
  }
  std::vector<int64_t> SequencesToTheEnd() {
    std::vector<int64_t> sequences;
    Message message;
    while (reader_->Read(&message)) {
      if (message.has_event()) sequences.push_back(message.event().sequence());
      if (message.has_progress()) steps_.push_back(message.progress().step());
    }
    status_ = reader_->Finish();
    return sequences;
  }
  static std::vector<int64_t> Range(int64_t first, int64_t last) {
    std::vector<int64_t> out;
    for (int64_t i = first; i <= last; ++i) out.push_back(i);
    return out;
  }

  RealClock clock_;
  RequestStats stats_;
  NoTokens tokens_;
  Authenticator authenticator_{{}, &tokens_, &clock_, &stats_};
  CallLimits limits_{{}, &clock_};
  Gate gate_{&authenticator_, &limits_, &stats_, &clock_, nullptr};
  OneJobStore store_;
  EventHub hub_{1'000'000};
  WatchContext context_{&gate_, &hub_, &store_, [](const Job& job) {
                          v1::Job shown;
                          shown.set_id(job.id);
                          return shown;
                        }};
  WatchOnly service_;
  std::unique_ptr<grpc::Server> server_;
  std::optional<Stubs> stubs_;
  grpc::ClientContext call_;
  std::unique_ptr<grpc::ClientReader<Message>> reader_;
  int64_t snapshot_sequence_ = 0;
  std::vector<int64_t> steps_;
  grpc::Status status_;
};

TEST_F(SlowWatchTest, AReaderBehindReadsTheRestFromTheStore) {
  Watch();
  // More than gRPC's buffers and the pending events hold together, while nobody reads.
  const std::string large(64 << 10, 'x');
  for (int i = 0; i < 300; ++i) Publish(store_.Commit(JobState::kRunning, large));
  Publish(store_.Commit(JobState::kSucceeded, "done"));
  EXPECT_EQ(SequencesToTheEnd(), Range(2, 302));
  EXPECT_TRUE(status_.ok()) << status_.error_message();
  EXPECT_GT(store_.event_reads(), 0);
}

TEST_F(SlowWatchTest, AGapInWhatIsPublishedIsReadFromTheStore) {
  Watch();
  for (int i = 0; i < 500; ++i) {
    const JobEvent event = store_.Commit(JobState::kRunning, "");
    if (i % 100 == 99) Publish(event);
  }
  Publish(store_.Commit(JobState::kFailed, ""));
  EXPECT_EQ(SequencesToTheEnd(), Range(2, 502));
  EXPECT_TRUE(status_.ok());
}

TEST_F(SlowWatchTest, ASlowReaderGetsTheLatestProgressAndEveryEvent) {
  Watch();
  const std::string large(256 << 10, 'x');
  for (int i = 1; i <= 40; ++i) Publish(store_.Commit(JobState::kRunning, large));
  MetricPoint point;
  point.attempt = 1;
  for (point.step = 1; point.step <= 10'000; ++point.step) hub_.OnProgress(kId, point);
  Message message;
  std::vector<int64_t> sequences;
  while (reader_->Read(&message) && !(message.has_progress() && message.progress().step() == 10'000)) {
    if (message.has_event()) sequences.push_back(message.event().sequence());
    if (message.has_progress()) steps_.push_back(message.progress().step());
  }
  EXPECT_EQ(sequences, Range(2, 41));
  EXPECT_LT(steps_.size(), 9'999u);  // coalesced, and in order
  EXPECT_TRUE(std::is_sorted(steps_.begin(), steps_.end()));
  call_.TryCancel();
  reader_->Finish();
}

TEST_F(SlowWatchTest, TheLastPointOfAJobComesBeforeItsEnd) {
  Watch();
  const std::string large(256 << 10, 'x');
  for (int i = 1; i <= 40; ++i) Publish(store_.Commit(JobState::kRunning, large));
  MetricPoint point;
  point.attempt = 1;
  for (point.step = 1; point.step <= 100; ++point.step) hub_.OnProgress(kId, point);
  Publish(store_.Commit(JobState::kSucceeded, "done"));
  EXPECT_EQ(SequencesToTheEnd(), Range(2, 42));
  ASSERT_FALSE(steps_.empty());
  EXPECT_EQ(steps_.back(), 100);
  EXPECT_TRUE(status_.ok()) << status_.error_message();
}

TEST_F(SlowWatchTest, DeletionEndsTheStream) {
  Watch();
  store_.Delete();
  hub_.OnJobDeleted(kId);
  EXPECT_TRUE(SequencesToTheEnd().empty());
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status_).reason, "JOB_NOT_FOUND");
}

TEST_F(SlowWatchTest, ACursorBeforeTheOldestKeptEventIsOutOfRange) {
  for (int i = 0; i < 10; ++i) Publish(store_.Commit(JobState::kRunning, ""));
  store_.ForgetBefore(6);
  v1::WatchFineTuneJobRequest request;
  request.set_id(kId);
  request.set_after_sequence(4);
  reader_ = stubs_->jobs->WatchFineTuneJob(&call_, request);
  Message message;
  EXPECT_FALSE(reader_->Read(&message));
  status_ = reader_->Finish();
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status_).reason, "EVENTS_COMPACTED");
}

TEST_F(SlowWatchTest, TheOldestKeptEventIsACursorsNext) {
  for (int i = 0; i < 10; ++i) Publish(store_.Commit(JobState::kRunning, ""));
  store_.ForgetBefore(6);
  Watch(5);
  Publish(store_.Commit(JobState::kCancelled, ""));
  EXPECT_EQ(snapshot_sequence_, 11);
  EXPECT_EQ(SequencesToTheEnd(), Range(6, 12));
  EXPECT_TRUE(status_.ok());
  EXPECT_EQ(stats_.Read().requests.at({"FineTuneService/WatchFineTuneJob", "OK"}), 1u);
}

}  // namespace
}  // namespace longhaul::server
