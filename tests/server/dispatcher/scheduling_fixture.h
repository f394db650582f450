// Jobs of several projects and classes on workers that a test plays by hand.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {

class SchedulingTest : public DispatcherCoreTest {
 protected:
  static Worker OneThread(const std::string& id) { return TestWorker(id, int64_t{8} << 30, 1); }

  std::string CreateAs(PriorityClass priority, const std::string& project = "default") {
    Job job = TestJob(blobs.Add("dataset"));
    job.priority = priority;
    job.project = project;
    const absl::StatusOr<Job> created = Do(core->Create({job, "body"}));
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->id : "";
  }
  // Time passes; the worker stays in touch.
  void Pass(const std::string& session, const std::vector<AttemptReport>& reports, int64_t seconds) {
    for (int64_t left = seconds; left > 0; left -= 10) {
      Advance(std::min<int64_t>(left, 10) * 1000);
      ASSERT_TRUE(Sync(session, reports).ok());
    }
  }
  void Start(const std::string& session, const std::string& id, AttemptKey* key) {
    const absl::StatusOr<SyncReply> reply = Validate(session, id);
    ASSERT_TRUE(StartOf(*reply, id).has_value()) << Get(id).reason_detail;
    *key = *StartOf(*reply, id);
    ASSERT_TRUE(Sync(session, {Running(*key)}).ok());
  }
  // While `running` runs; one validation at a time is what a worker of one thread takes.
  void ValidateInTurn(const std::string& session, const AttemptKey& running, const std::vector<std::string>& ids) {
    absl::StatusOr<SyncReply> reply = Sync(session, {Running(running)});
    for (const std::string& id : ids) {
      ASSERT_TRUE(reply.ok() && StartOf(*reply, id).has_value()) << Get(id).reason_detail;
      reply = Sync(session, {Running(running), Validated(*StartOf(*reply, id))});
    }
    ASSERT_TRUE(reply.ok());
  }
  void End(const std::string& session, const AttemptKey& key) {
    ASSERT_TRUE(CommitArtifact(session, key).ok());
    ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)}).ok());
  }
};

}  // namespace longhaul::server
