#include "server/core/transitions.h"

#include <map>
#include <set>

#include "base/error.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

using S = JobState;

// API.md section 2, row by row, written down a second time.
const std::map<S, std::set<S>> kLegal = {
    {S::kValidating, {S::kQueued, S::kFailed, S::kCancelled}},
    {S::kQueued, {S::kStarting, S::kPaused, S::kCancelled, S::kFailed}},
    {S::kStarting, {S::kRunning, S::kPausing, S::kRecovering, S::kCancelling, S::kFailed}},
    {S::kRunning, {S::kPausing, S::kRecovering, S::kFinalizing, S::kCancelling, S::kFailed}},
    {S::kPausing, {S::kPaused, S::kQueued, S::kFinalizing, S::kRecovering, S::kCancelling, S::kFailed}},
    {S::kPaused, {S::kQueued, S::kCancelled, S::kFailed}},
    {S::kRecovering, {S::kQueued, S::kPaused, S::kCancelled, S::kFailed}},
    {S::kFinalizing, {S::kSucceeded, S::kRecovering, S::kCancelling, S::kFailed}},
    {S::kCancelling, {S::kCancelled, S::kSucceeded, S::kFailed}},
    {S::kSucceeded, {}},
    {S::kFailed, {}},
    {S::kCancelled, {}},
};

TEST(TransitionsTest, EveryOneOfThe144Pairs) {
  int legal = 0;
  for (int from = 1; from <= kJobStates; ++from) {
    for (int to = 1; to <= kJobStates; ++to) {
      const S a = static_cast<S>(from);
      const S b = static_cast<S>(to);
      const bool expected = kLegal.at(a).contains(b);
      legal += expected;
      EXPECT_EQ(TransitionLegal(a, b), expected) << Name(a) << " -> " << Name(b);
      const absl::Status status = CheckTransition(a, b);
      EXPECT_EQ(status.ok(), expected);
      if (!expected) {
        EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
        EXPECT_EQ(ErrorReason(status), "ILLEGAL_TRANSITION");
        EXPECT_NE(std::string(status.message()).find(Name(a)), std::string::npos);
      }
    }
  }
  EXPECT_EQ(legal, 37);
  EXPECT_FALSE(TransitionLegal(static_cast<S>(0), S::kQueued));
  EXPECT_FALSE(TransitionLegal(S::kQueued, static_cast<S>(13)));
}

// A request's rule never asks for a transition that the table refuses.
TEST(TransitionsTest, RulesStayWithinTheTable) {
  for (int state = 1; state <= kJobStates; ++state) {
    const S from = static_cast<S>(state);
    for (const PauseCause cause : {PauseCause::kNone, PauseCause::kUser, PauseCause::kPreempt, PauseCause::kDrain}) {
      for (const RequestRule& rule : {CancelRule(from), PauseRule(from, cause), ResumeRule(from, cause)}) {
        if (rule.kind == RequestRule::Kind::kMove) {
          EXPECT_TRUE(TransitionLegal(from, rule.to)) << Name(from) << " -> " << Name(rule.to);
        }
        if (IsTerminal(from)) {
          EXPECT_EQ(rule.kind, RequestRule::Kind::kRefused) << Name(from);
        }
      }
    }
  }
}

TEST(TransitionsTest, CancelAndPauseInForceAnswerOk) {
  EXPECT_EQ(CancelRule(S::kCancelling).kind, RequestRule::Kind::kInForce);
  EXPECT_EQ(PauseRule(S::kPaused, PauseCause::kUser).kind, RequestRule::Kind::kInForce);
  EXPECT_EQ(PauseRule(S::kPausing, PauseCause::kUser).kind, RequestRule::Kind::kInForce);
  EXPECT_EQ(PauseRule(S::kPausing, PauseCause::kDrain).kind, RequestRule::Kind::kSetCause);
  EXPECT_EQ(PauseRule(S::kValidating, PauseCause::kNone).kind, RequestRule::Kind::kRefused);
  EXPECT_EQ(PauseRule(S::kFinalizing, PauseCause::kNone).kind, RequestRule::Kind::kRefused);
  EXPECT_EQ(ResumeRule(S::kPausing, PauseCause::kUser).kind, RequestRule::Kind::kSetCause);
  EXPECT_EQ(ResumeRule(S::kRunning, PauseCause::kNone).kind, RequestRule::Kind::kRefused);
}

TEST(TransitionsTest, RetryClasses) {
  for (const Reason reason : {Reason::kWorkerLost, Reason::kTrainerCrashed, Reason::kDiskFull, Reason::kInternal,
                              Reason::kPlanMismatch, Reason::kDeviceFault}) {
    EXPECT_TRUE(IsRetryable(reason)) << Name(reason);
  }
  for (const Reason reason :
       {Reason::kInvalidDataset, Reason::kInvalidModel, Reason::kDeviceOom, Reason::kHostOom, Reason::kNonFiniteLoss,
        Reason::kDeadlineExceeded, Reason::kResumeNotIdentical, Reason::kInvalidCheckpoint, Reason::kInvalidField}) {
    EXPECT_FALSE(IsRetryable(reason)) << Name(reason);
  }
  EXPECT_FALSE(UserCanFix(Reason::kHostOom));
  EXPECT_FALSE(UserCanFix(Reason::kInvalidCheckpoint));
  EXPECT_TRUE(UserCanFix(Reason::kInvalidDataset));
  EXPECT_TRUE(UserCanFix(Reason::kInvalidField));
}

}  // namespace
}  // namespace longhaul::server
