#include "worker/trainer/run_watch.h"

#include <gtest/gtest.h>

#include "base/clock.h"
#include "model/memory_plan.h"
#include "tests/fakes/tiny_model.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::trainer {
namespace {

// What the plan does slowly is said in the log and to the job's events, before the first step.
TEST(RunWatch, WarnsOfAttentionByReferenceKernels) {
  const RealClock clock;
  const TempDir temp;
  SignalInbox signals;
  DeviceFacts gpu;
  gpu.kind = DeviceKind::kCuda;
  gpu.isa = "sm_86";
  gpu.cudnn_version = 91400;
  gpu.device_bytes = int64_t{80} << 30;
  gpu.host_bytes = int64_t{8} << 30;
  TrainShape train;
  train.compute = ComputeType::kBF16;
  train.sequence_length = 128;
  for (const bool newer : {false, true}) {
    if (newer) gpu.cudnn_version = 91900;
    const auto plan = MakePlan(TinyModelShape(), train, gpu, PlanBudget());
    ASSERT_TRUE(plan.ok()) << plan.status();
    const std::string events_path = temp.At(newer ? "newer" : "older");
    auto events = Events::Open(events_path, &clock);
    ASSERT_TRUE(events.ok()) << events.status();
    std::string log;
    const AttemptContext context{attempt::AttemptDir(temp.At("attempt")),
                                 {},
                                 {},
                                 &clock,
                                 &signals,
                                 &*events,
                                 [&log](const std::string& line) { log += line + "\n"; },
                                 false};
    RunWatch watch(context, *plan);
    watch.OnStarted(train::TrainStarted());
    attempt::EventLogReader reader(events_path);
    const auto told = reader.ReadNew();
    ASSERT_TRUE(told.ok()) << told.status();
    int warnings = 0;
    for (const v1::TrainerEvent& event : *told) {
      if (!event.has_warning()) continue;
      ++warnings;
      EXPECT_NE(event.warning().message().find("cuDNN before 9.18.1"), std::string::npos) << event.warning().message();
    }
    EXPECT_EQ(warnings, newer ? 0 : 1);
    EXPECT_EQ(log.find("reference kernels") != std::string::npos, !newer) << log;
  }
}

TEST(EtaSeconds, CountsTheEvaluationsThatAreStillToCome) {
  // 60 updates of 2 s; the last evaluation, 10 s, always comes.
  EXPECT_DOUBLE_EQ(EtaSeconds(1, 60, 0, 2, 10), 59 * 2 + 10);
  EXPECT_DOUBLE_EQ(EtaSeconds(60, 60, 0, 2, 10), 10);
  // After updates 20 and 40 as well; that of the update just made is not made yet.
  EXPECT_DOUBLE_EQ(EtaSeconds(1, 60, 20, 2, 10), 59 * 2 + 3 * 10);
  EXPECT_DOUBLE_EQ(EtaSeconds(20, 60, 20, 2, 10), 40 * 2 + 3 * 10);
  EXPECT_DOUBLE_EQ(EtaSeconds(21, 60, 20, 2, 10), 39 * 2 + 2 * 10);
  EXPECT_DOUBLE_EQ(EtaSeconds(60, 60, 20, 2, 10), 10);
  EXPECT_DOUBLE_EQ(EtaSeconds(30, 60, 20, 2, 0), 60) << "none has been made yet";
}

}  // namespace
}  // namespace longhaul::trainer
