#include "server/rpc/list_page.h"

#include <utility>

#include "tests/server/rpc/worker_test_support.h"

namespace longhaul::server {
namespace {

class ListPageTest : public WorkerTest {
 protected:
  v1::ListWorkersResponse Page(const std::string& token, int size) {
    v1::ListWorkersRequest request;
    request.set_page_token(token);
    request.set_page_size(size);
    v1::ListWorkersResponse response;
    const grpc::Status status = Call(*stubs_->admin, &v1::WorkerAdminService::Stub::ListWorkers, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  // Every worker once, in order; the number of pages.
  int Pages(int size, std::vector<std::string>* ids) {
    int pages = 0;
    std::string token;
    do {
      const v1::ListWorkersResponse page = Page(token, size);
      for (const v1::Worker& worker : page.workers()) ids->push_back(worker.id());
      token = page.next_page_token();
      ++pages;
    } while (!token.empty() && pages < 100);
    return pages;
  }
};

TEST_F(ListPageTest, PagesHaveEveryWorkerOnce) {
  for (const char* id : {"a", "worker-2", "worker-10", "z"}) ASSERT_TRUE(FakeAgent(&*stubs_, id).Open().ok());
  const std::vector<std::string> all = {"a", "worker-1", "worker-10", "worker-2", "z"};
  const std::pair<int, int> cases[] = {{0, 1}, {1, 5}, {2, 3}, {5, 1}, {6, 1}, {1'000'000, 1}};
  for (const auto& [size, pages] : cases) {
    std::vector<std::string> ids;
    EXPECT_EQ(Pages(size, &ids), pages) << size;
    EXPECT_EQ(ids, all) << size;
  }
  v1::ListWorkersRequest request;
  request.set_page_size(-1);
  v1::ListWorkersResponse response;
  EXPECT_EQ(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::ListWorkers, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ListPageTest, AFleetLargerThanAMessageIsListed) {
  std::vector<std::string> all = {"worker-1"};
  for (int i = 0; i < 8; ++i) {
    all.push_back("worker-large-" + std::to_string(i));
    v1::OpenSessionRequest request = FakeAgent(&*stubs_, all.back()).Hello(int64_t{8} << 30);
    const v1::Model model = request.inventory().models(0);
    for (int j = 0; j < 999; ++j) {
      v1::Model* another = request.mutable_inventory()->add_models();
      *another = model;
      another->set_name(std::to_string(j) + std::string(250, 'n'));
      another->set_digest(Sha256Hex(another->name()) + std::string(190, 'd'));
    }
    v1::OpenSessionResponse response;
    const grpc::Status status = Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  std::vector<std::string> ids;
  EXPECT_GT(Pages(0, &ids), 1);
  EXPECT_EQ(ids, all);
}

TEST_F(ListPageTest, AttemptsAndCheckpointsHavePagesToo) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  for (const int64_t step : {1, 2}) {
    ASSERT_TRUE(Sync(Running(start, step)).ok());
    v1::CommitCheckpointRequest commit;
    commit.set_session_id(agent_->session_id());
    *commit.mutable_key() = start.key();
    commit.mutable_checkpoint()->set_step(step);
    *commit.mutable_checkpoint()->add_files() = Put("checkpoint", "bytes of step " + std::to_string(step));
    v1::CommitResponse committed;
    const grpc::Status status = Call(*stubs_->workers, &v1::WorkerService::Stub::CommitCheckpoint, commit, &committed);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  v1::ListAttemptsRequest attempts;
  attempts.set_id(job.id());
  attempts.set_page_size(1);
  v1::ListCheckpointsRequest checkpoints;
  checkpoints.set_id(job.id());
  checkpoints.set_page_size(1);
  for (const int64_t i : {1, 2}) {
    v1::ListAttemptsResponse page;
    ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListAttempts, attempts, &page).ok());
    ASSERT_EQ(page.attempts_size(), 1);
    EXPECT_EQ(page.attempts(0).number(), i);
    EXPECT_EQ(page.next_page_token().empty(), i == 2);
    attempts.set_page_token(page.next_page_token());
    v1::ListCheckpointsResponse steps;
    ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListCheckpoints, checkpoints, &steps).ok());
    ASSERT_EQ(steps.checkpoints_size(), 1);
    EXPECT_EQ(steps.checkpoints(0).step(), i);
    EXPECT_EQ(steps.next_page_token().empty(), i == 2);
    checkpoints.set_page_token(steps.next_page_token());
  }
  attempts.set_page_token("2x");
  v1::ListAttemptsResponse page;
  const grpc::Status refused = Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListAttempts, attempts, &page);
  EXPECT_NE(DetailsOf(refused).Of("page_token"), "");
}

}  // namespace
}  // namespace longhaul::server
