#include "worker/agent/session.h"

#include <gtest/gtest.h>

#include <deque>
#include <vector>

#include "base/error.h"
#include "base/limits.h"

namespace longhaul::agent {
namespace {

// Hands every call to the test, which answers when it likes.
class ManualClient final : public SchedulerClient {
 public:
  using OpenDone = std::function<void(absl::StatusOr<v1::OpenSessionResponse>)>;
  using SyncDone = std::function<void(absl::StatusOr<v1::SyncResponse>)>;
  void OpenSession(const v1::OpenSessionRequest& request, OpenDone done) override {
    opens.push_back(std::move(done));
    last_opening = request.has_last_opening() ? request.last_opening() : "absent";
  }
  void Sync(const v1::SyncRequest& request, int64_t deadline_ms, SyncDone done) override {
    syncs.push_back({request, std::move(done)});
    last_deadline_ms = deadline_ms;
  }
  absl::Status CommitCheckpoint(const v1::CommitCheckpointRequest&) override { return Unused(); }
  absl::Status CommitArtifact(const v1::CommitArtifactRequest&) override { return Unused(); }
  absl::StatusOr<int64_t> AppendLog(const v1::AppendLogRequest&) override { return Unused(); }
  absl::StatusOr<std::vector<v1::BlobName>> FindMissing(const std::vector<v1::BlobName>&) override { return Unused(); }
  absl::Status WriteBlob(const v1::BlobName&, const std::string&, const CancelFlag&) override { return Unused(); }
  absl::Status ReadBlob(const v1::BlobName&, int64_t, const std::function<absl::Status(std::string_view)>&,
                        const CancelFlag&) override {
    return Unused();
  }

  struct Call {
    v1::SyncRequest request;
    SyncDone done;
  };
  std::deque<OpenDone> opens;
  std::deque<Call> syncs;
  std::string last_opening;
  int64_t last_deadline_ms = 0;

 private:
  static absl::Status Unused() { return absl::InternalError("a session makes no such call"); }
};

class SessionTest : public ::testing::Test, public SessionDelegate {
 protected:
  void FillOpen(v1::OpenSessionRequest*) override {}
  void OnOpened(const v1::OpenSessionResponse&) override { ++opened_; }
  void FillSync(v1::SyncRequest* request) override { filled_.push_back(request->sync_number()); }
  void OnSynced(int64_t number, const v1::SyncResponse&, int64_t sent) override { synced_.emplace_back(number, sent); }
  void Log(const std::string& line) override { lines_.push_back(line); }

  void Turn(int64_t advance_ms = 50) {
    clock_.AdvanceMillis(advance_ms);
    mailbox_.Drain();
    session_.Poll();
  }
  void Open() {
    session_.Poll();
    ASSERT_EQ(client_.opens.size(), 1u);
    v1::OpenSessionResponse response;
    response.set_session_id("s" + std::to_string(opened_ + 1));
    response.set_hold_ms(10'000);
    response.set_lease_ms(lease_ms_);
    client_.opens.front()(response);
    client_.opens.pop_front();
    Turn();
  }
  void Answer(absl::StatusOr<v1::SyncResponse> response = v1::SyncResponse(), size_t index = 0) {
    client_.syncs[index].done(std::move(response));
    client_.syncs.erase(client_.syncs.begin() + static_cast<int64_t>(index));
    Turn();
  }
  std::vector<int64_t> InFlight() const {
    std::vector<int64_t> numbers;
    for (const auto& call : client_.syncs) numbers.push_back(call.request.sync_number());
    return numbers;
  }

  FakeClock clock_;
  Mailbox mailbox_;
  ManualClient client_;
  Session session_{1, this, &client_, &clock_, &mailbox_};
  int64_t lease_ms_ = 60'000;
  int opened_ = 0;
  std::vector<int64_t> filled_;
  std::vector<std::pair<int64_t, int64_t>> synced_;
  std::vector<std::string> lines_;
};

TEST_F(SessionTest, KeepsOneSyncParked) {
  Open();
  EXPECT_EQ(InFlight(), std::vector<int64_t>{1});
  EXPECT_EQ(client_.last_deadline_ms, 20'000);
  Turn();
  EXPECT_EQ(InFlight(), std::vector<int64_t>{1});
  Answer();
  EXPECT_EQ(InFlight(), std::vector<int64_t>{2});
}

TEST_F(SessionTest, NewsGoesOutBesideTheParkedOneAndNeverAThird) {
  Open();
  session_.MarkNews();
  Turn();
  EXPECT_EQ(InFlight(), (std::vector<int64_t>{1, 2}));
  session_.MarkNews();
  Turn();
  EXPECT_EQ(InFlight(), (std::vector<int64_t>{1, 2}));
  Answer();  // of 1: room for the news
  EXPECT_EQ(InFlight(), (std::vector<int64_t>{2, 3}));
}

TEST_F(SessionTest, NewsIsBundledOverTheShortestInterval) {
  Open();
  session_.MarkNews();
  clock_.AdvanceMillis(-40);  // ten milliseconds after the first one left
  session_.Poll();
  const int64_t wake = session_.NextWakeNanos();
  EXPECT_EQ(InFlight().size(), 1u);
  EXPECT_GT(wake, clock_.BootNanos());
  EXPECT_LE(wake, clock_.BootNanos() + limits::kMinSyncIntervalMs * 1'000'000 + 40'000'000);
  Turn(60);
  EXPECT_EQ(InFlight().size(), 2u);
}

TEST_F(SessionTest, AnswersComeInAnyOrderWithTheirOwnSendTimes) {
  Open();
  const int64_t first = clock_.BootNanos();
  session_.MarkNews();
  Turn(100);
  const int64_t second = clock_.BootNanos();
  Answer(v1::SyncResponse(), 1);
  Answer(v1::SyncResponse(), 0);
  ASSERT_EQ(synced_.size(), 2u);
  EXPECT_EQ(synced_[0], (std::pair<int64_t, int64_t>{2, second}));
  EXPECT_EQ(synced_[1], (std::pair<int64_t, int64_t>{1, first}));
}

TEST_F(SessionTest, AFailedSyncIsRepeatedUnderItsNumberAfterAWait) {
  Open();
  session_.MarkNews();
  Turn();
  client_.syncs[0].done(absl::UnavailableError("gone"));
  client_.syncs[1].done(absl::UnavailableError("gone"));
  client_.syncs.clear();
  mailbox_.Drain();
  session_.Poll();
  EXPECT_TRUE(client_.syncs.empty());
  EXPECT_GT(session_.NextWakeNanos(), clock_.BootNanos());
  Turn(limits::kMaxBackoffMs);
  EXPECT_EQ(InFlight(), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(lines_.size(), 2u);  // opened; and one complaint, not one a failure
  EXPECT_EQ(opened_, 1);
}

// However long the outage, with short leases an agent asks before its trainers have held for long.
TEST_F(SessionTest, ItAsksSeveralTimesALease) {
  lease_ms_ = 3'000;
  Open();
  client_.syncs[0].done(absl::UnavailableError("gone"));
  client_.syncs.clear();
  mailbox_.Drain();
  int asked = 0;
  for (int64_t ms = 0; ms < 60'000; ms += 50) {
    Turn();
    if (client_.syncs.empty()) continue;
    ++asked;
    client_.syncs[0].done(absl::UnavailableError("gone"));
    client_.syncs.clear();
    mailbox_.Drain();
  }
  EXPECT_GE(asked, 60'000 / lease_ms_ * 4);
}

// Sent again and again, but not without a word: this is no outage.
TEST_F(SessionTest, ARefusedSyncIsToldOnce) {
  Open();
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(client_.syncs.size(), 1u) << i;
    client_.syncs[0].done(
        MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", "attempts: has 4001 elements"));
    client_.syncs.clear();
    mailbox_.Drain();
    Turn(limits::kMaxBackoffMs);
  }
  EXPECT_TRUE(session_.fatal().ok());
  ASSERT_EQ(lines_.size(), 2u) << lines_.back();  // the first is of the opening
  EXPECT_NE(lines_[1].find("refuses what this worker tells it: attempts: has 4001 elements"), std::string::npos)
      << lines_[1];
  EXPECT_EQ(lines_[1].find("does not answer"), std::string::npos) << lines_[1];
  // Taken at last: another refusal is news.
  Answer();
  client_.syncs[0].done(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", "attempts: has 4001 elements"));
  client_.syncs.clear();
  mailbox_.Drain();
  EXPECT_EQ(lines_.size(), 3u);
}

TEST_F(SessionTest, AClosedSessionIsOpenedAgainAndItsAnswersAreDropped) {
  Open();
  session_.MarkNews();
  Turn(2'000);
  ASSERT_EQ(client_.syncs.size(), 2u);
  const auto late = client_.syncs[1].done;
  client_.syncs[0].done(MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED", "closed"));
  client_.syncs.clear();
  mailbox_.Drain();
  EXPECT_EQ(session_.id(), "");
  Open();
  EXPECT_EQ(session_.id(), "s2");
  EXPECT_EQ(InFlight(), std::vector<int64_t>{1});  // numbers begin again
  late(v1::SyncResponse());
  Turn();
  EXPECT_TRUE(synced_.empty());
}

TEST_F(SessionTest, ASessionTakenAtOnceIsNotFoughtFor) {
  Open();
  client_.syncs[0].done(MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED", "closed"));
  mailbox_.Drain();
  session_.Poll();
  EXPECT_TRUE(client_.opens.empty());
  Turn(limits::kMaxBackoffMs);
  EXPECT_EQ(client_.opens.size(), 1u);
}

TEST_F(SessionTest, TwoAgentsUnderOneIdAreTold) {
  const auto told = [this] {
    return std::count_if(lines_.begin(), lines_.end(),
                         [](const std::string& line) { return line.find("another agent") != std::string::npos; });
  };
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(told(), i < 3 ? 0 : 1) << i;
    if (i == 0) {
      Open();
    } else {
      Turn(limits::kMaxBackoffMs);
      Open();
    }
    client_.syncs.back().done(MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED", "closed"));
    client_.syncs.clear();
    mailbox_.Drain();
  }
}

TEST_F(SessionTest, AnAbsentSchedulerIsAskedAgain) {
  session_.Poll();
  client_.opens.front()(absl::UnavailableError("connection refused"));
  client_.opens.pop_front();
  mailbox_.Drain();
  session_.Poll();
  EXPECT_TRUE(client_.opens.empty());
  Turn(limits::kMaxBackoffMs);
  EXPECT_EQ(client_.opens.size(), 1u);
  EXPECT_TRUE(session_.fatal().ok());
}

TEST_F(SessionTest, RefusedCredentialsEndAnAgentThatWasNeverIn) {
  session_.Poll();
  client_.opens.front()(MakeError(absl::StatusCode::kUnauthenticated, "NO_CREDENTIALS", "a token, please"));
  Turn();
  EXPECT_EQ(ErrorReason(session_.fatal()), "NO_CREDENTIALS");
}

TEST_F(SessionTest, CredentialsThatExpireAreAskedAgainUntilTheyAreRenewed) {
  Open();
  const absl::Status expired = MakeError(absl::StatusCode::kUnauthenticated, "TOKEN_INVALID", "expired");
  Answer(expired);
  Turn(limits::kMaxBackoffMs);
  EXPECT_EQ(InFlight(), std::vector<int64_t>{1}) << "the Sync is repeated";
  // The scheduler restarts meanwhile: the session has to be opened anew, and may not be.
  Answer(MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED", "gone"));
  Turn(limits::kMaxBackoffMs);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(client_.opens.size(), 1u) << i;
    client_.opens.front()(expired);
    client_.opens.pop_front();
    Turn(limits::kMaxBackoffMs);
    Turn(limits::kMaxBackoffMs);
    EXPECT_TRUE(session_.fatal().ok());
  }
  ASSERT_EQ(client_.opens.size(), 1u);
  client_.opens.front()(v1::OpenSessionResponse());
  client_.opens.pop_front();
  Turn();
  EXPECT_EQ(opened_, 2);
}

// By the agent before this one, or by a call of ours whose answer was lost: told of it, we ask again at once.
TEST_F(SessionTest, AnOpeningThatWeDidNotKnowOfIsNamedInTheNextCall) {
  session_.Poll();
  EXPECT_EQ(client_.last_opening, "") << "of none";
  const absl::Status since =
      WithMetadata(MakeError(absl::StatusCode::kAborted, "OPENED_SINCE", "it was opened"), "opening", "o-7");
  client_.opens.front()(since);
  client_.opens.pop_front();
  Turn(1);
  ASSERT_EQ(client_.opens.size(), 1u);
  EXPECT_EQ(client_.last_opening, "o-7");
  client_.opens.front()(since);  // of the opening that we named: no reason to hurry
  client_.opens.pop_front();
  Turn(1);
  EXPECT_TRUE(client_.opens.empty());
  Turn(limits::kMaxBackoffMs);
  ASSERT_EQ(client_.opens.size(), 1u);
  v1::OpenSessionResponse response;
  response.set_session_id("s1");
  response.set_opening("o-8");
  client_.opens.front()(response);
  client_.opens.pop_front();
  Turn();
  EXPECT_EQ(session_.id(), "s1");
  clock_.AdvanceMillis(2'000);
  session_.Reopen("other models");
  Turn();
  ASSERT_EQ(client_.opens.size(), 1u);
  EXPECT_EQ(client_.last_opening, "o-8");
}

TEST_F(SessionTest, ATooOldWorkerGivesUp) {
  session_.Poll();
  client_.opens.front()(
      MakeError(absl::StatusCode::kFailedPrecondition, "WORKER_TOO_OLD", "protocol 1; this scheduler speaks 2 and 3"));
  client_.opens.pop_front();
  Turn(limits::kMaxBackoffMs);
  EXPECT_EQ(ErrorReason(session_.fatal()), "WORKER_TOO_OLD");
  EXPECT_TRUE(client_.opens.empty());
}

TEST_F(SessionTest, ATooNewWorkerGivesUp) {
  session_.Poll();
  client_.opens.front()(MakeError(absl::StatusCode::kFailedPrecondition, "WORKER_TOO_NEW", "upgrade the scheduler"));
  client_.opens.pop_front();
  Turn(limits::kMaxBackoffMs);
  EXPECT_EQ(ErrorReason(session_.fatal()), "WORKER_TOO_NEW");
  EXPECT_TRUE(client_.opens.empty());
}

TEST_F(SessionTest, ReopensWhereWhatItToldHasChanged) {
  Open();
  EXPECT_EQ(InFlight(), std::vector<int64_t>{1});
  clock_.AdvanceMillis(2'000);
  session_.Reopen("other models");
  EXPECT_EQ(session_.id(), "");
  EXPECT_NE(lines_.back().find("opened anew: other models"), std::string::npos);
  Answer();  // of the session that is over: to nobody
  EXPECT_TRUE(synced_.empty());
  ASSERT_EQ(client_.opens.size(), 1u);
  // While the answer to an opening is on its way, which told what is old by now.
  session_.Reopen("others again");
  EXPECT_EQ(client_.opens.size(), 1u);
  v1::OpenSessionResponse response;
  response.set_session_id("s2");
  client_.opens.front()(response);
  client_.opens.pop_front();
  Turn();
  Turn(limits::kMaxBackoffMs);
  ASSERT_EQ(client_.opens.size(), 1u) << "opened once more";
  response.set_session_id("s3");
  client_.opens.front()(response);
  client_.opens.pop_front();
  Turn();
  EXPECT_EQ(session_.id(), "s3");
}

TEST(SessionLifeTest, AnAnswerAfterItsEndFindsNobody) {
  FakeClock clock;
  Mailbox mailbox;
  ManualClient client;
  struct Nobody final : SessionDelegate {
    void FillOpen(v1::OpenSessionRequest*) override {}
    void OnOpened(const v1::OpenSessionResponse&) override { ADD_FAILURE(); }
    void FillSync(v1::SyncRequest*) override {}
    void OnSynced(int64_t, const v1::SyncResponse&, int64_t) override {}
    void Log(const std::string&) override {}
  } nobody;
  {
    Session session(1, &nobody, &client, &clock, &mailbox);
    session.Poll();
  }
  client.opens.front()(v1::OpenSessionResponse());
  mailbox.Drain();
}

}  // namespace
}  // namespace longhaul::agent
