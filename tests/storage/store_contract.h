// What every server::Store promises, run on the fake and on SQLite. A new store adds itself to store_contract_test.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/core/store.h"

namespace longhaul::server {

// One store under test. Reopen closes it and opens it again: what was committed is there, what was not is not.
class StoreUnderTest {
 public:
  virtual ~StoreUnderTest() = default;
  virtual Store& store() = 0;
  virtual void Reopen() = 0;
};

struct StoreFactory {
  std::string name;
  std::function<std::unique_ptr<StoreUnderTest>()> make;
};

class StoreContractTest : public ::testing::TestWithParam<StoreFactory> {
 protected:
  void SetUp() override { under_test_ = GetParam().make(); }
  Store& store() { return under_test_->store(); }
  void Reopen() { under_test_->Reopen(); }

  std::unique_ptr<StoreTransaction> Begin() {
    absl::StatusOr<std::unique_ptr<StoreTransaction>> transaction = store().Begin();
    EXPECT_TRUE(transaction.ok()) << transaction.status();
    return *std::move(transaction);
  }
  // One committed transaction.
  void Write(const std::function<absl::Status(StoreTransaction&)>& write) {
    std::unique_ptr<StoreTransaction> transaction = Begin();
    const absl::Status written = write(*transaction);
    ASSERT_TRUE(written.ok()) << written;
    const absl::Status committed = transaction->Commit();
    ASSERT_TRUE(committed.ok()) << committed;
  }
  void PutJob(const Job& job) {
    Write([&](StoreTransaction& tx) { return tx.PutJob(job); });
  }

  static Job MakeJob(int number, JobState state = JobState::kQueued) {
    Job job;
    job.id = "ftjob-" + std::to_string(1000 + number);
    job.project = "default";
    job.model = "m";
    job.create_number = static_cast<uint64_t>(number);
    job.create_wall_micros = 1'000'000 + number;
    job.state = state;
    return job;
  }
  static std::vector<std::string> Ids(const std::vector<Job>& jobs) {
    std::vector<std::string> ids;
    for (const Job& job : jobs) ids.push_back(job.id.substr(6));
    return ids;
  }

  std::unique_ptr<StoreUnderTest> under_test_;
};

}  // namespace longhaul::server
