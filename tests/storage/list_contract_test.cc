// The contract's part about List; the stores are named in store_contract_test.cc.
#include <algorithm>
#include <array>

#include "base/random.h"
#include "gmock/gmock.h"
#include "tests/storage/store_contract.h"

namespace longhaul::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

bool MatchesFilter(const Job& job, const JobFilter& filter) {
  const auto has_label = [&](const auto& label) {
    const auto found = job.labels.find(label.first);
    return found != job.labels.end() && found->second == label.second;
  };
  return (filter.project.empty() || job.project == filter.project) &&
         (filter.model.empty() || job.model == filter.model) &&
         (filter.states.empty() ||
          std::find(filter.states.begin(), filter.states.end(), job.state) != filter.states.end()) &&
         job.create_wall_micros > filter.created_after_micros &&
         (filter.created_before_micros == 0 || job.create_wall_micros < filter.created_before_micros) &&
         job.id.starts_with(filter.id_prefix) && std::all_of(filter.labels.begin(), filter.labels.end(), has_label);
}

TEST_P(StoreContractTest, ListPagesBothWays) {
  for (int i = 1; i <= 7; ++i) PutJob(MakeJob(i));
  JobFilter filter;
  filter.page_size = 3;
  std::vector<std::string> seen;
  for (int page = 0; page < 3; ++page) {
    const absl::StatusOr<JobPage> jobs = store().ListJobs(filter);
    ASSERT_TRUE(jobs.ok()) << jobs.status();
    for (const std::string& id : Ids(jobs->jobs)) seen.push_back(id);
    filter.page_token = jobs->next_page_token;
    EXPECT_EQ(filter.page_token.empty(), page == 2);
    if (page == 0) PutJob(MakeJob(8));  // newer: not in the pages behind it
  }
  EXPECT_THAT(seen, ElementsAre("1007", "1006", "1005", "1004", "1003", "1002", "1001"));
  JobFilter oldest;
  oldest.oldest_first = true;
  oldest.page_size = 8;
  const absl::StatusOr<JobPage> all = store().ListJobs(oldest);
  ASSERT_TRUE(all.ok());
  EXPECT_THAT(Ids(all->jobs), ElementsAre("1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008"));
  EXPECT_EQ(all->next_page_token, "");
  oldest.page_token = "junk";
  EXPECT_EQ(store().ListJobs(oldest).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(StoreContractTest, ListFilters) {
  for (int i = 1; i <= 6; ++i) {
    Job job = MakeJob(i, i % 2 == 0 ? JobState::kQueued : JobState::kSucceeded);
    job.project = i <= 3 ? "p" : "q";
    job.model = i == 6 ? "other" : "m";
    job.labels = {{"i", std::to_string(i)}, {"odd", i % 2 ? "1" : "0"}};
    PutJob(job);
  }
  const auto list = [&](auto set) {
    JobFilter filter;
    set(filter);
    const absl::StatusOr<JobPage> page = store().ListJobs(filter);
    EXPECT_TRUE(page.ok()) << page.status();
    return Ids(page->jobs);
  };
  EXPECT_THAT(list([](JobFilter& f) { f.project = "p"; }), ElementsAre("1003", "1002", "1001"));
  EXPECT_THAT(list([](JobFilter& f) { f.states = {JobState::kQueued}; }), ElementsAre("1006", "1004", "1002"));
  EXPECT_THAT(list([](JobFilter& f) {
                f.states = {JobState::kQueued, JobState::kSucceeded};
                f.project = "q";
              }),
              ElementsAre("1006", "1005", "1004"));
  EXPECT_THAT(list([](JobFilter& f) { f.model = "other"; }), ElementsAre("1006"));
  EXPECT_THAT(list([](JobFilter& f) { f.labels = {{"odd", "1"}}; }), ElementsAre("1005", "1003", "1001"));
  EXPECT_THAT(list([](JobFilter& f) { f.labels = {{"odd", "1"}, {"i", "3"}}; }), ElementsAre("1003"));
  EXPECT_THAT(list([](JobFilter& f) {
                f.labels = {{"odd", "1"}};
                f.project = "q";
              }),
              ElementsAre("1005"));
  EXPECT_THAT(list([](JobFilter& f) {
                f.labels = {{"odd", "1"}, {"i", "3"}};
                f.project = "q";
              }),
              IsEmpty());
  EXPECT_THAT(list([](JobFilter& f) { f.labels = {{"odd", "' OR 1=1 --"}}; }), IsEmpty());
  EXPECT_THAT(list([](JobFilter& f) {
                f.created_after_micros = 1'000'002;
                f.created_before_micros = 1'000'005;
              }),
              ElementsAre("1004", "1003"));
  EXPECT_THAT(list([](JobFilter& f) { f.id_prefix = "ftjob-1005"; }), ElementsAre("1005"));
  EXPECT_THAT(list([](JobFilter& f) { f.id_prefix = "ftjob-100%"; }), IsEmpty());
}

// Every combination of filters, over jobs that have changed their state since they were made, page by page: just what
// a look at each job would find.
TEST_P(StoreContractTest, ListIsWhatALookAtEachJobFinds) {
  constexpr std::array kStates = {JobState::kQueued, JobState::kRunning, JobState::kSucceeded, JobState::kFailed,
                                  JobState::kCancelled};
  Mt19937 random(7);
  const auto draw = [&](int below) { return static_cast<int>(random() % static_cast<uint32_t>(below)); };
  std::vector<Job> jobs;  // in the order of their creation
  for (int i = 1; i <= 120; ++i) {
    Job job = MakeJob(i, kStates[static_cast<size_t>(draw(5))]);
    job.project = "p" + std::to_string(draw(2));
    job.model = "m" + std::to_string(draw(3));
    job.labels = {{"a", std::to_string(draw(3))}, {"b", std::to_string(draw(2))}};
    PutJob(job);
    jobs.push_back(job);
  }
  for (Job& job : jobs) {
    if (IsTerminal(job.state) || draw(3) == 0) continue;
    job.state = kStates[static_cast<size_t>(draw(5))];
    PutJob(job);
  }
  int found = 0;
  for (int round = 0; round < 400; ++round) {
    JobFilter filter;
    if (draw(2) == 0) filter.project = "p" + std::to_string(draw(2));
    if (draw(3) == 0) filter.model = "m" + std::to_string(draw(3));
    if (draw(2) == 0) filter.labels["a"] = std::to_string(draw(3));
    if (draw(2) == 0) filter.labels["b"] = std::to_string(draw(2));
    for (const JobState state : kStates) {
      if (draw(3) == 0) filter.states.push_back(state);
    }
    if (draw(3) == 0) filter.created_after_micros = 1'000'000 + draw(60);
    if (draw(3) == 0) filter.created_before_micros = 1'000'050 + draw(72);  // after the last one, too
    // Short and long beginnings: "ftjob-1", "ftjob-10", "ftjob-105".
    if (draw(4) == 0) filter.id_prefix = std::string("ftjob-1053").substr(0, static_cast<size_t>(7 + draw(3)));
    filter.oldest_first = draw(2) == 0;
    filter.page_size = 1 + draw(30);
    std::vector<Job> expected;
    for (const Job& job : jobs) {
      if (MatchesFilter(job, filter)) expected.push_back(job);
    }
    if (!filter.oldest_first) std::reverse(expected.begin(), expected.end());
    std::vector<Job> seen;
    do {
      const absl::StatusOr<JobPage> page = store().ListJobs(filter);
      ASSERT_TRUE(page.ok()) << page.status();
      seen.insert(seen.end(), page->jobs.begin(), page->jobs.end());
      filter.page_token = page->next_page_token;
    } while (!filter.page_token.empty());
    ASSERT_EQ(Ids(seen), Ids(expected)) << "round " << round;
    found += static_cast<int>(seen.size());
  }
  EXPECT_GT(found, 400) << "the filters found next to nothing";
}

}  // namespace
}  // namespace longhaul::server
