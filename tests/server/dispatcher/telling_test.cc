// What it may cost the dispatcher to tell those who ask why and until when jobs wait.
#include <algorithm>
#include <memory>
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
    if (costs) fake_.AdvanceMillis(cost_ms);
    return fake_.BootNanos();
  }
  void AdvanceMillis(int64_t ms) { fake_.AdvanceMillis(ms); }

  bool costs = false;
  int64_t cost_ms = 5;

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
  using Explained = std::optional<absl::StatusOr<std::optional<Explanation>>>;  // none: not answered yet
  using Forecasted = std::optional<absl::Status>;

  std::shared_ptr<Explained> Explain(const std::string& id) {
    auto answer = std::make_shared<Explained>();
    loop_.Explain(id, [answer](absl::StatusOr<std::optional<Explanation>> told) { answer->emplace(std::move(told)); });
    return answer;
  }
  static bool Tells(const Explained& answer) { return answer.has_value() && answer->ok() && (*answer)->has_value(); }
  bool Explains(const std::string& id) { return Tells(*Explain(id)); }
  void Forecast(Forecasted* answer, const bool* cancelled = nullptr) {
    loop_.Forecast(
        TestJob(blobs_.Add("dataset")), [cancelled] { return cancelled != nullptr && *cancelled; },
        [answer](const absl::StatusOr<StartForecast>& forecast) { *answer = forecast.status(); });
  }
  // One that costs, so that those after it wait.
  void ForecastAtACost() {
    clock_.costs = true;
    Forecasted first;
    Forecast(&first);
    clock_.costs = false;
    ASSERT_TRUE(first.has_value() && first->ok());
  }
  // To the loop's next turn.
  void AdvanceToNextTurn() { clock_.AdvanceMillis((loop_.NextTurnBootNanos() - clock_.BootNanos()) / 1'000'000 + 1); }

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
  clock_.AdvanceMillis(60'000);
  EXPECT_TRUE(Explains(one));
  EXPECT_NE(loop_.told().table, told);
  EXPECT_TRUE(Explains(two));
  EXPECT_EQ(ErrorReason(Explain("ftjob-none")->value().status()), "JOB_NOT_FOUND");
}

// However many jobs come and ask at once: the telling rests all the same, and then is one for all.
TEST_F(TellingTest, WhoCameAfterATellingWaitsForTheNext) {
  const std::string one = Create();
  clock_.costs = true;
  ASSERT_TRUE(Explains(one));
  clock_.costs = false;
  const auto told = loop_.told();
  std::vector<std::shared_ptr<Explained>> answers;
  for (int i = 0; i < 5; ++i) {
    answers.push_back(Explain(Create()));
    EXPECT_FALSE(answers.back()->has_value());
  }
  EXPECT_EQ(loop_.told().table, told.table);
  EXPECT_LE(loop_.NextTurnBootNanos(), told.again_boot_nanos) << "it goes on by itself";
  clock_.AdvanceMillis((told.again_boot_nanos - clock_.BootNanos()) / 1'000'000 + 1);
  Turn();
  EXPECT_NE(loop_.told().table, told.table);
  for (const auto& answer : answers) EXPECT_TRUE(Tells(*answer));
}

TEST_F(TellingTest, WhoWouldWaitTooLongForATellingIsToldNothingAtOnce) {
  const std::string one = Create();
  clock_.costs = true;
  clock_.cost_ms = 500;  // it rests for ten seconds and more
  ASSERT_TRUE(Explains(one));
  clock_.costs = false;
  const auto told = loop_.told().table;
  const std::string two = Create();
  const auto answer = Explain(two);
  ASSERT_TRUE(answer->has_value());
  EXPECT_TRUE((*answer)->ok() && !(*answer)->value().has_value());
  EXPECT_TRUE(Explains(one)) << "as it was told";
  EXPECT_EQ(loop_.told().table, told);
}

TEST_F(TellingTest, NotAllMayWaitForATelling) {
  const std::string one = Create();
  clock_.costs = true;
  ASSERT_TRUE(Explains(one));
  clock_.costs = false;
  const std::string two = Create();
  std::vector<std::shared_ptr<Explained>> answers;
  for (int i = 0; i < limits::kMaxExplainsWaiting + 1; ++i) answers.push_back(Explain(two));
  EXPECT_FALSE(answers.front()->has_value());
  EXPECT_FALSE(answers[answers.size() - 2]->has_value());
  ASSERT_TRUE(answers.back()->has_value());
  EXPECT_FALSE(Tells(*answers.back()));
  loop_.RefuseParked();
  EXPECT_EQ(ErrorReason(answers.front()->value().status()), "SHUTTING_DOWN");
}

TEST_F(TellingTest, ForecastsComeInTurnAndNotAllAtOnce) {
  Create();
  std::vector<Forecasted> answers(limits::kMaxForecastsWaiting + 2);
  const auto answered = [&] {
    return std::count_if(answers.begin(), answers.end(), [](const auto& answer) { return answer.has_value(); });
  };
  clock_.costs = true;
  for (Forecasted& answer : answers) {
    Forecast(&answer);
    clock_.costs = false;
  }
  ASSERT_EQ(answered(), 2);
  EXPECT_TRUE(answers.front()->ok()) << *answers.front();
  EXPECT_EQ(ErrorReason(**answers.rbegin()), "TOO_MANY_FORECASTS");
  Turn();
  EXPECT_EQ(answered(), 2) << "it rests";
  EXPECT_LT(loop_.NextTurnBootNanos() - clock_.BootNanos(), int64_t{1'000'000'000}) << "and then goes on by itself";
  clock_.costs = true;
  AdvanceToNextTurn();
  Turn();
  clock_.costs = false;
  EXPECT_EQ(answered(), 3);
  EXPECT_TRUE(answers[1]->ok()) << *answers[1];
  loop_.RefuseParked();
  EXPECT_EQ(answered(), static_cast<int64_t>(answers.size()));
  EXPECT_EQ(ErrorReason(*answers[2]), "SHUTTING_DOWN");
}

TEST_F(TellingTest, AForecastWaitsForNoLongerThanItMay) {
  Create();
  ForecastAtACost();
  std::vector<Forecasted> answers(3);
  for (Forecasted& answer : answers) Forecast(&answer);
  clock_.AdvanceMillis(limits::kMaxForecastWaitMs);
  EXPECT_LE(loop_.NextTurnBootNanos(), clock_.BootNanos());
  clock_.costs = true;
  Turn();
  clock_.costs = false;
  ASSERT_TRUE(answers[0].has_value());
  EXPECT_TRUE(answers[0]->ok()) << "its turn had come";
  for (int i = 1; i < 3; ++i) {
    ASSERT_TRUE(answers[i].has_value()) << i;
    EXPECT_EQ(ErrorReason(*answers[i]), "TOO_MANY_FORECASTS");
  }
  // Where it is plain from the beginning that it would wait in vain, it does not.
  clock_.AdvanceMillis(60'000);
  clock_.cost_ms = 500;
  ForecastAtACost();
  Forecasted late;
  Forecast(&late);
  ASSERT_TRUE(late.has_value());
  EXPECT_EQ(ErrorReason(*late), "TOO_MANY_FORECASTS");
}

TEST_F(TellingTest, ForecastsThatNobodyWaitsForTakeNoPlaceAndNoTime) {
  Create();
  ForecastAtACost();
  bool cancelled = false;
  std::vector<Forecasted> answers(limits::kMaxForecastsWaiting);
  Forecast(&answers[0], &cancelled);
  for (size_t i = 1; i < answers.size(); ++i) Forecast(&answers[i]);
  Forecasted more;
  Forecast(&more);
  ASSERT_TRUE(more.has_value()) << "the line is full";
  EXPECT_EQ(ErrorReason(*more), "TOO_MANY_FORECASTS");
  cancelled = true;
  more.reset();
  Forecast(&more, &cancelled);
  EXPECT_FALSE(more.has_value()) << "it has the place of the one that was cancelled";
  ASSERT_TRUE(answers[0].has_value());
  EXPECT_TRUE(absl::IsCancelled(*answers[0])) << *answers[0];
  AdvanceToNextTurn();
  Turn();  // at no cost: all of them
  ASSERT_TRUE(more.has_value());
  EXPECT_TRUE(absl::IsCancelled(*more)) << *more;
  for (size_t i = 1; i < answers.size(); ++i) EXPECT_TRUE(answers[i].has_value() && answers[i]->ok()) << i;
}

}  // namespace
}  // namespace longhaul::server
