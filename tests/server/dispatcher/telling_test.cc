// What it may cost the dispatcher to tell those who ask why and until when jobs wait.
#include <optional>

#include "base/error.h"
#include "base/limits.h"
#include "gtest/gtest.h"
#include "server/dispatcher_loop.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"

namespace longhaul::server {
namespace {

// While `costs`, whoever looks at it finds that time has passed: what is between two looks takes that long.
class CostlyClock final : public Clock {
 public:
  int64_t WallMicros() const override { return fake_.WallMicros(); }
  int64_t BootNanos() const override {
    if (costs) fake_.AdvanceMillis(5);
    return fake_.BootNanos();
  }
  void AdvanceMillis(int64_t ms) { fake_.AdvanceMillis(ms); }

  bool costs = false;

 private:
  mutable FakeClock fake_;
};

class TellingTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(loop_.Load().ok()); }

  std::string Create() {
    std::string id;
    std::vector<Mail> batch;
    batch.push_back({[&](DispatcherCore& core) {
                       const absl::StatusOr<Job> job = core.Create({TestJob(blobs_.Add("dataset")), "body"});
                       EXPECT_TRUE(job.ok()) << job.status();
                       if (job.ok()) id = job->id;
                     },
                     [](const absl::Status& committed) { EXPECT_TRUE(committed.ok()) << committed; }, nullptr});
    loop_.Turn(&batch);
    return id;
  }
  void Turn() {
    std::vector<Mail> none;
    loop_.Turn(&none);
  }
  bool Explains(const std::string& id) {
    const auto explanation = loop_.Explain(id);
    EXPECT_TRUE(explanation.ok()) << explanation.status();
    return explanation.ok() && explanation->has_value();
  }

  CostlyClock clock_;
  FakeStore store_;
  FakeBlobs blobs_;
  FakePlanner planner_;
  RecordingSink sink_;
  DispatcherLoop loop_{Dispatcher::Options{60'000, 90'000, 10'000}, &store_, &blobs_, &clock_, &sink_, &planner_};
};

TEST_F(TellingTest, ExplanationsShareATellingAndItsRest) {
  const std::string one = Create();
  clock_.costs = true;
  ASSERT_TRUE(Explains(one));
  clock_.costs = false;
  const auto told = loop_.told().table;
  EXPECT_TRUE(Explains(one));
  EXPECT_EQ(loop_.told().table, told) << "there was no pass since";
  // A pass, and another: who asks is told the last telling until it has rested.
  const std::string two = Create();
  EXPECT_TRUE(Explains(one));
  EXPECT_EQ(loop_.told().table, told);
  EXPECT_TRUE(Explains(two)) << "it was not there then";
  EXPECT_NE(loop_.told().table, told);
  const auto again = loop_.told().table;
  clock_.AdvanceMillis(60'000);
  Create();
  EXPECT_TRUE(Explains(one));
  EXPECT_NE(loop_.told().table, again);
  EXPECT_EQ(ErrorReason(loop_.Explain("ftjob-none").status()), "JOB_NOT_FOUND");
}

TEST_F(TellingTest, ForecastsComeInTurnAndNotAllAtOnce) {
  Create();
  std::vector<std::optional<absl::Status>> answers(limits::kMaxForecastsWaiting + 2);
  const auto answered = [&] {
    return std::count_if(answers.begin(), answers.end(), [](const auto& answer) { return answer.has_value(); });
  };
  clock_.costs = true;
  for (std::optional<absl::Status>& answer : answers) {
    loop_.Forecast(TestJob(blobs_.Add("dataset")),
                   [&answer](const absl::StatusOr<StartForecast>& forecast) { answer = forecast.status(); });
    clock_.costs = false;
  }
  ASSERT_EQ(answered(), 2);
  EXPECT_TRUE(answers.front()->ok()) << *answers.front();
  EXPECT_EQ(ErrorReason(**answers.rbegin()), "TOO_MANY_FORECASTS");
  Turn();
  EXPECT_EQ(answered(), 2) << "it rests";
  const int64_t next = loop_.NextTurnBootNanos();
  EXPECT_LT(next - clock_.BootNanos(), int64_t{1'000'000'000}) << "and then goes on by itself";
  clock_.costs = true;
  clock_.AdvanceMillis((next - clock_.BootNanos()) / 1'000'000 + 1);
  Turn();
  clock_.costs = false;
  EXPECT_EQ(answered(), 3);
  EXPECT_TRUE(answers[1]->ok()) << *answers[1];
  loop_.RefuseParked();
  EXPECT_EQ(answered(), static_cast<int64_t>(answers.size()));
  EXPECT_EQ(ErrorReason(*answers[2]), "SHUTTING_DOWN");
}

}  // namespace
}  // namespace longhaul::server
