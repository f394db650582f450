// Estimates and explanations of a scheduler that has no time for them: what is known is told all the same.
#include <atomic>

#include "base/limits.h"
#include "gtest/gtest.h"
#include "server/rpc/fine_tune_create.h"
#include "server/rpc/fine_tune_explain.h"
#include "server/rpc/rpc_context.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"
#include "tests/server/rpc/rpc_test_support.h"
#include "wire/model_values.h"

namespace longhaul::server {
namespace {

// Whoever asks it for the first time of a shape finds that time has passed.
class SlowPlanner final : public Planner {
 public:
  explicit SlowPlanner(FakeClock* clock) : clock_(clock) {}
  Demand Evaluate(const PlanRequest& request, const DeviceFacts& facts, PlanPoint point, bool explain) const override {
    clock_->AdvanceMillis(1'000);
    return planner_.Evaluate(request, facts, point, explain);
  }
  absl::StatusOr<std::string> PlanJson(const PlanRequest& request, const DeviceFacts& facts,
                                       PlanPoint point) const override {
    return planner_.PlanJson(request, facts, point);
  }

 private:
  FakeClock* const clock_;
  const FakePlanner planner_;
};

class BusyTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(dispatcher_.Start().ok());
    Worker worker = TestWorker("w1");
    worker.models[0].shape = *wire::FromProto(TinyShape());
    worker.models[0].storage = "safetensors:F32";
    ASSERT_TRUE(dispatcher_.OpenSession({worker, 1, {}}).ok());
    caller_.name = "local";
    caller_.project = "default";
    request_.mutable_spec()->set_model(kTestModel);
    request_.mutable_spec()->mutable_hyperparameters()->set_max_sequence_length(128);
    request_.mutable_spec()->mutable_hyperparameters()->set_max_steps(10);
  }
  absl::StatusOr<v1::EstimateFineTuneJobResponse> Estimate(bool cancelled = false) {
    return EstimateJob(context_, caller_, request_, [cancelled] { return cancelled; });
  }

  FakeClock clock_;
  FakeStore store_;
  FakeBlobs blobs_;
  SlowPlanner planner_{&clock_};
  RecordingSink sink_;
  Dispatcher dispatcher_{Dispatcher::Options{60'000, 90'000, 10'000}, &store_, &blobs_, &clock_, &sink_, &planner_};
  PlanMemo plans_{&MemoryPlanner()};
  const RpcContext context_{Gate(nullptr, nullptr, nullptr, &clock_, &dispatcher_),
                            &dispatcher_,
                            &store_,
                            nullptr,
                            nullptr,
                            nullptr,
                            &plans_,
                            nullptr};
  Caller caller_;
  v1::EstimateFineTuneJobRequest request_;
};

TEST_F(BusyTest, AnEstimateComesWithoutItsForecast) {
  const absl::StatusOr<v1::EstimateFineTuneJobResponse> first = Estimate();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->fits_somewhere());
  EXPECT_TRUE(first->has_queue());
  EXPECT_FALSE(first->queue_unknown());
  // That one took seconds: the next rests for longer than anybody waits.
  const absl::StatusOr<v1::EstimateFineTuneJobResponse> busy = Estimate();
  ASSERT_TRUE(busy.ok()) << busy.status();
  EXPECT_FALSE(busy->has_queue());
  EXPECT_TRUE(busy->queue_unknown());
  EXPECT_TRUE(busy->fits_somewhere());
  ASSERT_EQ(busy->classes_size(), 1);
  EXPECT_GT(busy->classes(0).estimate().host_bytes(), 0);
  clock_.AdvanceMillis(600'000);
  const absl::StatusOr<v1::EstimateFineTuneJobResponse> cancelled = Estimate(true);
  EXPECT_TRUE(absl::IsCancelled(cancelled.status())) << cancelled.status();
  const absl::StatusOr<v1::EstimateFineTuneJobResponse> last = Estimate();
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_TRUE(last->has_queue());
}

// A job that the store has and no telling knows of yet.
TEST_F(BusyTest, AnExplanationSaysThatNothingIsWorkedOutYet) {
  Job job = TestJob(blobs_.Add("dataset"));
  job.id = "ftjob-new";
  job.create_number = 7;
  job.state = JobState::kQueued;
  auto tx = store_.Begin();
  ASSERT_TRUE(tx.ok()) << tx.status();
  ASSERT_TRUE((*tx)->PutJob(job).ok());
  ASSERT_TRUE((*tx)->Commit().ok());
  const absl::StatusOr<v1::ExplainFineTuneJobResponse> answer = ExplainJob(context_, job);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->job().id(), "ftjob-new");
  EXPECT_NE(answer->summary().find("not worked out yet"), std::string::npos) << answer->summary();
}

}  // namespace
}  // namespace longhaul::server
