// Every request in every one of the twelve states, through the dispatcher: what it moves to, or the error.
#include <map>

#include "server/core/transitions.h"
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using S = JobState;

enum class Request { kCancel, kPause, kResume, kDelete };
constexpr Request kRequests[] = {Request::kCancel, Request::kPause, Request::kResume, Request::kDelete};

const char* Name(Request request) {
  switch (request) {
    case Request::kCancel:
      return "cancel";
    case Request::kPause:
      return "pause";
    case Request::kResume:
      return "resume";
    default:
      return "delete";
  }
}

// API.md section 2 and dispatcher.h, written down a second time: the state right after the request; absent = refused.
// A pause of a job whose start was not yet sent is over at once.
const std::map<Request, std::map<S, S>> kAfter = {
    {Request::kCancel,
     {{S::kValidating, S::kCancelled},
      {S::kQueued, S::kCancelled},
      {S::kStarting, S::kCancelling},
      {S::kRunning, S::kCancelling},
      {S::kPausing, S::kCancelling},
      {S::kPaused, S::kCancelled},
      {S::kRecovering, S::kCancelled},
      {S::kFinalizing, S::kCancelling},
      {S::kCancelling, S::kCancelling}}},
    {Request::kPause,
     {{S::kQueued, S::kPaused},
      {S::kStarting, S::kPausing},
      {S::kRunning, S::kPausing},
      {S::kPausing, S::kPausing},
      {S::kPaused, S::kPaused},
      {S::kRecovering, S::kPaused}}},
    {Request::kResume, {{S::kPausing, S::kPausing}, {S::kPaused, S::kQueued}}},
    {Request::kDelete, {}},
};

// A scheduler with one job in the wanted state, the batch still open where the state lasts no longer.
class InState : public CoreHarness {
 public:
  explicit InState(S state) { Reach(state); }
  const std::string& id() const { return id_; }
  void FailUntilTheNextTick() {
    Ok(core->Sync({session_, ++sync_number, {Failed(key_, Reason::kInternal)}, 0, 0}).status());
  }

 private:
  void Reach(S state) {
    session_ = Open(TestWorker("w1", int64_t{8} << 30, 1));
    if (state == S::kQueued) {
      std::string other;
      RunningJob(session_, &other);
      id_ = Create();
      Validate(session_, id_).status().IgnoreError();
      return;
    }
    id_ = Create();
    if (state == S::kValidating) return;
    const absl::StatusOr<SyncReply> reply = Validate(session_, id_);
    key_ = *StartOf(*reply, id_);
    if (state == S::kStarting) return;
    EXPECT_TRUE(Sync(session_, {Running(key_)}).ok());
    switch (state) {
      case S::kPausing:
        return Ok(Do(core->Pause(id_)).status());
      case S::kPaused:
        Ok(Do(core->Pause(id_)).status());
        return Tell(Report(key_, AttemptPhase::kEnded, ExitReason::kCheckpointed));
      case S::kRecovering:  // until the next tick
        return FailUntilTheNextTick();
      case S::kFinalizing:
        return Tell(Report(key_, AttemptPhase::kFinalizing));
      case S::kCancelling:
        return Ok(Do(core->Cancel(id_)).status());
      case S::kSucceeded:
        return Ok(CommitArtifact(session_, key_));
      case S::kFailed:
        return Tell(Failed(key_, Reason::kNonFiniteLoss));
      case S::kCancelled:
        Ok(Do(core->Cancel(id_)).status());
        return Tell(Report(key_, AttemptPhase::kEnded, ExitReason::kCancelled));
      default:
        return;
    }
  }
  void Tell(const AttemptReport& report) { Ok(Sync(session_, {report}).status()); }
  static void Ok(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }

  std::string session_;
  std::string id_;
  AttemptKey key_;
};

absl::Status Send(DispatcherCore& core, Request request, const std::string& id, S* after) {
  if (request == Request::kDelete) return core.Delete(id);
  const absl::StatusOr<Job> job = request == Request::kCancel  ? core.Cancel(id)
                                  : request == Request::kPause ? core.Pause(id)
                                                               : core.Resume(id);
  if (job.ok()) *after = job->state;
  return job.status();
}

TEST(RequestMatrixTest, EveryRequestInEveryState) {
  for (int number = 1; number <= kJobStates; ++number) {
    const S state = static_cast<S>(number);
    for (const Request request : kRequests) {
      SCOPED_TRACE(std::string(Name(request)) + " while " + longhaul::server::Name(state));
      InState scheduler(state);
      const auto memory = scheduler.core->jobs().find(scheduler.id());
      const Job before =
          memory != scheduler.core->jobs().end() ? memory->second.job : scheduler.store.GetJob(scheduler.id()).value();
      ASSERT_EQ(before.state, state);
      S after = before.state;
      const absl::Status status = Send(*scheduler.core, request, scheduler.id(), &after);
      const bool is_delete = request == Request::kDelete;
      const auto expected = kAfter.at(request).find(state);
      if (is_delete ? IsTerminal(state) : expected != kAfter.at(request).end()) {
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_TRUE(is_delete || after == expected->second) << "now " << longhaul::server::Name(after);
        EXPECT_TRUE(after == state || TransitionLegal(state, after));
        EXPECT_TRUE(scheduler.Settle().ok());
        EXPECT_EQ(scheduler.store.GetJob(scheduler.id()).ok(), !is_delete);
        continue;
      }
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_EQ(ErrorReason(status), "ILLEGAL_TRANSITION");
      EXPECT_NE(std::string(status.message()).find(longhaul::server::Name(state)), std::string::npos) << status;
      const auto still = scheduler.core->jobs().find(scheduler.id());
      if (still != scheduler.core->jobs().end()) {
        EXPECT_EQ(still->second.job.state, state) << "a refused request changes nothing";
        EXPECT_EQ(still->second.job.sequence, before.sequence);
      }
      EXPECT_EQ(ErrorReason(Send(*scheduler.core, request, "ftjob-none", &after)), "JOB_NOT_FOUND");
    }
  }
}

// The cause of a pause through every request: user outranks the others, a resume only takes the user's back.
TEST(RequestMatrixTest, CausesOfAPause) {
  for (const PauseCause cause : {PauseCause::kUser, PauseCause::kPreempt, PauseCause::kDrain}) {
    EXPECT_EQ(PauseRule(S::kPausing, cause).kind,
              cause == PauseCause::kUser ? RequestRule::Kind::kInForce : RequestRule::Kind::kSetCause);
    EXPECT_EQ(ResumeRule(S::kPausing, cause).kind,
              cause == PauseCause::kUser ? RequestRule::Kind::kSetCause : RequestRule::Kind::kInForce);
    EXPECT_EQ(ResumeRule(S::kRecovering, cause).kind, ResumeRule(S::kPausing, cause).kind);
  }
}

// A pause whose attempt fails before its checkpoint recovers into PAUSED, unless it is taken back on the way.
TEST(RequestMatrixTest, AResumeWhileAPausedJobRecovers) {
  for (const bool resumed : {false, true}) {
    InState scheduler(S::kPausing);
    scheduler.FailUntilTheNextTick();
    S after = S::kValidating;
    if (resumed) {
      ASSERT_TRUE(Send(*scheduler.core, Request::kResume, scheduler.id(), &after).ok());
      EXPECT_EQ(after, S::kRecovering);
    }
    scheduler.Advance(limits::kMaxBackoffSeconds * 1'000);
    const S state = scheduler.State(scheduler.id());
    EXPECT_EQ(state == S::kPaused, !resumed) << Name(state);
  }
}

}  // namespace
}  // namespace longhaul::server
