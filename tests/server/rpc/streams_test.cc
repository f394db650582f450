// A client that opens 10,000 streams and reads none of them to its end: it gets what one may have, and nobody else
// fewer.
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr int kStreams = 10'000;
const std::string kHello = "{\"text\":\"hello\"}\n";

// Streams of one channel, of each the first message read and no more.
template <typename Response>
class Crowd {
 public:
  // `open` begins a call: open(context, reactor).
  template <typename Open>
  Crowd(int streams, Open open) {
    for (int i = 0; i < streams; ++i) streams_.push_back(std::make_unique<Stream>(this));
    for (const auto& stream : streams_) {
      open(&stream->context, stream.get());
      stream->Begin();
    }
    std::unique_lock lock(mutex_);
    settled_ = changed_.wait_for(lock, std::chrono::minutes(3), [&] { return opened_ + ended_ == streams; });
  }
  ~Crowd() {
    for (const auto& stream : streams_) stream->context.TryCancel();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_of_all_ == static_cast<int>(streams_.size()); });
  }
  bool settled() const { return settled_; }
  int opened() {
    std::lock_guard lock(mutex_);
    return opened_;
  }
  // By code and reason.
  std::map<std::pair<int, std::string>, int> refused() {
    std::lock_guard lock(mutex_);
    return refused_;
  }

 private:
  struct Stream final : public grpc::ClientReadReactor<Response> {
    explicit Stream(Crowd* of) : crowd(of) {}
    void Begin() {
      this->StartRead(&first);
      this->StartCall();
    }
    void OnReadDone(bool ok) override {
      if (ok) crowd->Note([&] { ++crowd->opened_, open = true; });
    }
    void OnDone(const grpc::Status& status) override {
      crowd->Note([&] {
        ++crowd->ended_of_all_;
        if (open) return;
        ++crowd->ended_;
        ++crowd->refused_[{static_cast<int>(status.error_code()), DetailsOf(status).reason}];
      });
    }
    Crowd* const crowd;
    grpc::ClientContext context;
    Response first;
    bool open = false;  // guarded by the crowd's mutex
  };

  template <typename Change>
  void Note(Change change) {
    std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }

  std::vector<std::unique_ptr<Stream>> streams_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int opened_ = 0;
  int ended_ = 0;  // of those that did not open
  int ended_of_all_ = 0;
  std::map<std::pair<int, std::string>, int> refused_;
  bool settled_ = false;
};

const std::map<std::pair<int, std::string>, int> kTheRest = {
    {{grpc::StatusCode::RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS"}, kStreams - limits::kMaxStreamsPerCaller}};

template <typename Response>
void ExpectItsShare(Crowd<Response>& crowd) {
  ASSERT_TRUE(crowd.settled());
  EXPECT_EQ(crowd.opened(), limits::kMaxStreamsPerCaller);
  EXPECT_EQ(crowd.refused(), kTheRest);
}

// A watch's first message, then it goes.
grpc::Status WatchOnce(const Stubs& stubs, const std::string& id) {
  v1::WatchFineTuneJobRequest request;
  request.set_id(id);
  grpc::ClientContext context;
  const auto stream = stubs.jobs->WatchFineTuneJob(&context, request);
  v1::WatchFineTuneJobResponse message;
  if (!stream->Read(&message)) return stream->Finish();
  context.TryCancel();
  stream->Finish();
  return grpc::Status::OK;
}

auto Watching(const Stubs& stubs, const v1::WatchFineTuneJobRequest* request) {
  return [&stubs, request](grpc::ClientContext* context, auto* reactor) {
    stubs.jobs->async()->WatchFineTuneJob(context, request, reactor);
  };
}

class ManyStreamsTest : public SecureRpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = SecureRpcTest::Options();
    options.call_burst = 2 * kStreams;  // its rate is not what stops it
    return options;
  }
};

TEST_F(ManyStreamsTest, OneTokenGetsItsOwnAndLeavesTheOthersTheirs) {
  const Stubs greedy = As(MakeTokenOf("greedy", "admin", "*"));
  const Stubs other = As(MakeTokenOf("other", "admin", "*"));
  Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  FakeAgent agent(&fleet);
  ASSERT_TRUE(agent.Open().ok());
  ASSERT_TRUE(UploadAs(other, kHello).ok());
  v1::Job job;
  ASSERT_TRUE(Call(*other.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kHello), &job).ok());
  v1::WatchFineTuneJobRequest request;
  request.set_id(job.id());
  {
    Crowd<v1::WatchFineTuneJobResponse> crowd(kStreams, Watching(greedy, &request));
    ASSERT_NO_FATAL_FAILURE(ExpectItsShare(crowd));
    const grpc::Status watched = WatchOnce(other, job.id());
    EXPECT_TRUE(watched.ok()) << watched.error_message();
    EXPECT_TRUE(Call(*other.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kHello), &job).ok());
    EXPECT_TRUE(List(greedy).ok()) << "calls that are no streams go on";
    v1::SyncResponse response;
    EXPECT_TRUE(agent.Sync({}, &response).ok());
  }
  // Its places come back as the server hears of the ends.
  grpc::Status again;
  do {
    again = WatchOnce(greedy, job.id());
  } while (DetailsOf(again).reason == "TOO_MANY_STREAMS");
  EXPECT_TRUE(again.ok()) << again.error_message();
}

// Without credentials.
TEST_F(ManyStreamsTest, WatchesOfHealthHaveABoundOfTheirOwn) {
  const Stubs nobody = With(ClientOptions());
  const Stubs other = As(MakeTokenOf("other", "admin", "*"));
  const auto health = Health::NewStub(nobody.channel);
  const HealthCheckRequest request;
  Crowd<HealthCheckResponse> crowd(kStreams, [&](grpc::ClientContext* context, auto* reactor) {
    health->async()->Watch(context, &request, reactor);
  });
  ASSERT_NO_FATAL_FAILURE(ExpectItsShare(crowd));
  EXPECT_TRUE(List(other).ok());
  grpc::ClientContext context;
  HealthCheckResponse response;
  EXPECT_TRUE(health->Check(&context, request, &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
}

class LocalStreamsTest : public RpcTest {
 protected:
  Stubs OfAConnectionOfItsOwn() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return Stubs(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->grpc_port()),
                                           grpc::InsecureChannelCredentials(), arguments));
  }
};

// On a plaintext loopback everybody is the operator: each connection has its bound.
TEST_F(LocalStreamsTest, OneConnectionGetsItsOwnAndLeavesTheOthersTheirs) {
  FakeAgent agent(&*stubs_);
  ASSERT_TRUE(agent.Open().ok());
  const v1::Job job = MustCreate(GoodRequest());
  const Stubs greedy = OfAConnectionOfItsOwn();
  const Stubs other = OfAConnectionOfItsOwn();
  v1::WatchFineTuneJobRequest request;
  request.set_id(job.id());
  Crowd<v1::WatchFineTuneJobResponse> crowd(kStreams, Watching(greedy, &request));
  ASSERT_NO_FATAL_FAILURE(ExpectItsShare(crowd));
  // Who reads hears of everything, whatever the 5,000 that do not read have not taken yet.
  grpc::ClientContext context;
  const auto reader = other.jobs->WatchFineTuneJob(&context, request);
  v1::WatchFineTuneJobResponse message;
  ASSERT_TRUE(reader->Read(&message));
  v1::Job ended;
  ASSERT_TRUE(Cancel(job.id(), &ended).ok());
  v1::JobState last = v1::JOB_STATE_UNSPECIFIED;
  while (reader->Read(&message)) {
    if (message.has_event()) last = message.event().state();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(last, v1::CANCELLED);
  MustCreate(GoodRequest());
}

// gRPC refuses them before we see them: without our details, and without harm to others.
TEST_F(LocalStreamsTest, MessagesAndMetadataBeyondTheLimits) {
  FakeAgent agent(&*stubs_);
  ASSERT_TRUE(agent.Open().ok());
  const Stubs large = OfAConnectionOfItsOwn();  // which gRPC may close
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.set_suffix(std::string(limits::kMaxGrpcMessageBytes, 'x'));
  v1::Job job;
  EXPECT_EQ(Call(*large.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  grpc::ClientContext context;
  context.AddMetadata("x-much", std::string(limits::kMaxGrpcMetadataBytes, 'x'));
  v1::ListFineTuneJobsResponse response;
  EXPECT_FALSE(large.jobs->ListFineTuneJobs(&context, v1::ListFineTuneJobsRequest(), &response).ok());
  EXPECT_EQ(CountJobs(), 0u);
  MustCreate(GoodRequest());
}

class HealthTest : public RpcTest {
 protected:
  HealthCheckResponse::ServingStatus Read(grpc::ClientReader<HealthCheckResponse>* stream) {
    HealthCheckResponse response;
    return stream->Read(&response) ? response.status() : HealthCheckResponse::UNKNOWN;
  }
};

TEST_F(HealthTest, SaysWhatServes) {
  const auto health = Health::NewStub(stubs_->channel);
  for (const auto& [service, code, expected] :
       {std::tuple("", grpc::StatusCode::OK, HealthCheckResponse::SERVING),
        std::tuple("longhaul.v1.WorkerService", grpc::StatusCode::OK, HealthCheckResponse::SERVING),
        std::tuple("no.such.Service", grpc::StatusCode::NOT_FOUND, HealthCheckResponse::UNKNOWN)}) {
    HealthCheckRequest request;
    request.set_service(service);
    grpc::ClientContext context;
    HealthCheckResponse response;
    const grpc::Status status = health->Check(&context, request, &response);
    EXPECT_EQ(status.error_code(), code) << service;
    EXPECT_EQ(response.status(), expected) << service;
    EXPECT_EQ(DetailsOf(status).reason, code == grpc::StatusCode::OK ? "" : "UNKNOWN_SERVICE") << service;
  }
}

TEST_F(HealthTest, AWatchTellsOfTheEndAndIsEnded) {
  const auto health = Health::NewStub(stubs_->channel);
  HealthCheckRequest of_all, of_none;
  of_none.set_service("no.such.Service");
  grpc::ClientContext contexts[2];
  const auto all = health->Watch(&contexts[0], of_all);
  const auto none = health->Watch(&contexts[1], of_none);
  EXPECT_EQ(Read(all.get()), HealthCheckResponse::SERVING);
  EXPECT_EQ(Read(none.get()), HealthCheckResponse::SERVICE_UNKNOWN) << "it may come yet: no error";
  server_.reset();
  EXPECT_EQ(Read(all.get()), HealthCheckResponse::NOT_SERVING);
  for (const auto* stream : {&all, &none}) {
    EXPECT_EQ(Read(stream->get()), HealthCheckResponse::UNKNOWN);
    const grpc::Status status = (*stream)->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(DetailsOf(status).reason, "SHUTTING_DOWN");
  }
}

}  // namespace
}  // namespace longhaul::server
