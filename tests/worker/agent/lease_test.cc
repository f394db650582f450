// Lease arithmetic on a clock that moves by hand: a lease counts from the moment its Sync was sent.
#include <gtest/gtest.h>

#include <memory>

#include "base/env.h"
#include "tests/worker/agent/fake_scheduler.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/agent_core.h"

namespace longhaul::agent {
namespace {

class InlineTasks final : public TaskRunner {
 public:
  void Run(std::function<void()> task) override { task(); }
};

class LeaseTest : public ::testing::Test {
 protected:
  LeaseTest() {
    AgentOptions options;
    options.worker_id = "worker";
    options.state_dir = temp_.path();
    options.trainer_path = FAKE_TRAINER_PATH;
    options.models["digest"] = {"/models/tiny", "fingerprint", ""};
    core_ = std::make_unique<AgentCore>(options, AgentParts{&clock_, &scheduler_, &mailbox_, &tasks_, &tasks_, &tasks_,
                                                            nullptr, [](const std::string&) {}});
    EXPECT_TRUE(core_->Recover().ok());
    v1::WorkerCommand command;
    v1::AttemptKey* key = command.mutable_start()->mutable_key();
    key->set_job_id("job");
    key->set_attempt(1);
    key->set_lease_epoch(9);
    v1::AttemptSpec* spec = command.mutable_start()->mutable_spec();
    spec->set_model_digest("digest");
    const v1::BlobName blob = scheduler_.AddBlob("deaf\n");
    spec->mutable_spec()->mutable_dataset()->set_sha256(blob.sha256());
    Turn();  // the session opens
    Turn();  // a Sync is parked
    parked_at_ = clock_.BootNanos();
    clock_.AdvanceMillis(7'000);
    scheduler_.Command(command);  // answers it, seven seconds later
    Turn();
  }
  ~LeaseTest() override {
    v1::AttemptKey key;
    key.set_job_id("job");
    key.set_attempt(1);
    key.set_lease_epoch(9);
    scheduler_.Stop(key, v1::STOP_MODE_FENCED);
    for (int i = 0; i < 20'000 && core_->attempts() > 0; ++i) {
      clock_.AdvanceMillis(100);
      Turn();
      mailbox_.Wait(1);
    }
    EXPECT_EQ(core_->attempts(), 0u);
    scheduler_.CloseSessions();
    core_.reset();
  }

  void Turn() {
    mailbox_.Drain();
    core_->Poll();
  }
  int64_t Deadline() const {
    return attempt::AttemptDir(temp_.path() + "/attempts/job.1.9")
        .ReadLease()
        .value_or(v1::LeaseFile())
        .deadline_boot_nanos();
  }

  static constexpr int64_t kLease = int64_t{60'000} * 1'000'000;
  FakeClock clock_;
  TempDir temp_;
  FakeScheduler scheduler_;
  Mailbox mailbox_;
  InlineTasks tasks_;
  std::unique_ptr<AgentCore> core_;
  int64_t parked_at_ = 0;
};

TEST_F(LeaseTest, TheFirstLeaseCountsFromTheSyncThatBroughtTheStart) { EXPECT_EQ(Deadline(), parked_at_ + kLease); }

TEST_F(LeaseTest, AnAnswerExtendsFromItsOwnSyncNotFromNow) {
  clock_.AdvanceMillis(1'000);
  Turn();  // the next Sync leaves
  const int64_t sent = clock_.BootNanos();
  clock_.AdvanceMillis(9'000);
  EXPECT_EQ(Deadline(), parked_at_ + kLease);  // parked: nothing extends it
  v1::AttemptKey other;
  other.set_job_id("other");
  scheduler_.Stop(other, v1::STOP_MODE_CANCEL);  // any command answers it
  Turn();
  EXPECT_GE(Deadline(), sent - 1'000'000'000 + kLease);
  EXPECT_LE(Deadline(), sent + kLease);
}

TEST_F(LeaseTest, NoAnswerNoLease) {
  const int64_t before = Deadline();
  scheduler_.set_down(true);
  for (int i = 0; i < 100; ++i) {
    clock_.AdvanceMillis(1'000);
    Turn();
  }
  EXPECT_EQ(Deadline(), before);
  EXPECT_GT(clock_.BootNanos(), before);  // it has run out; the trainer holds by itself
  scheduler_.set_down(false);
  scheduler_.set_hold(false);
  for (int i = 0; i < 30; ++i) {
    clock_.AdvanceMillis(1'000);
    Turn();
  }
  EXPECT_GT(Deadline(), clock_.BootNanos());
  scheduler_.set_hold(true);
}

TEST_F(LeaseTest, ALaterAnswerToAnEarlierSyncDoesNotShortenIt) {
  scheduler_.set_hold(false);
  int64_t last = Deadline();
  for (int i = 0; i < 50; ++i) {
    clock_.AdvanceMillis(300);
    Turn();
    EXPECT_GE(Deadline(), last);
    last = Deadline();
  }
  EXPECT_GT(last, parked_at_ + kLease);
  scheduler_.set_hold(true);
}

}  // namespace
}  // namespace longhaul::agent
