// What a worker may put into its reports: texts and numbers that the scheduler keeps, adds up and gives to everybody.
#include <limits>

#include "base/limits.h"
#include "tests/server/rpc/worker_test_support.h"

namespace longhaul::server {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr size_t kNearlyAMessage = 4'190'000;

class ReportSizeTest : public WorkerTest {
 protected:
  // Get and watch are what a message that is too large breaks, for ever.
  void ExpectReadable(const std::string& id) {
    EXPECT_EQ(Get(id).id(), id);
    v1::WatchFineTuneJobRequest request;
    request.set_id(id);
    request.set_after_sequence(0);
    grpc::ClientContext context;
    const auto reader = stubs_->jobs->WatchFineTuneJob(&context, request);
    v1::WatchFineTuneJobResponse message;
    ASSERT_TRUE(reader->Read(&message));
    const int64_t last = message.snapshot().sequence();
    while (reader->Read(&message) && message.event().sequence() < last) {
    }
    EXPECT_EQ(message.event().sequence(), last);
    context.TryCancel();
    reader->Finish();
  }
  static std::string WarningOf(const v1::Job& job, Stubs& stubs) {
    grpc::ClientContext context;
    v1::WatchFineTuneJobRequest request;
    request.set_id(job.id());
    request.set_after_sequence(0);
    const auto reader = stubs.jobs->WatchFineTuneJob(&context, request);
    v1::WatchFineTuneJobResponse message;
    while (reader->Read(&message) && message.event().type() != v1::JOB_EVENT_TYPE_WARNING) {
    }
    context.TryCancel();
    reader->Finish();
    return message.event().message();
  }
};

TEST_F(ReportSizeTest, AHugeWarningIsCutAtAWholeCharacter) {
  v1::Job job;
  v1::AttemptStatus status = Running(StartTraining(&job), 1);
  std::string warning = "x";
  while (warning.size() < kNearlyAMessage) warning += "\xc3\xa4";
  status.add_warnings(warning);
  ASSERT_TRUE(Sync(status).ok());
  ExpectReadable(job.id());
  EXPECT_EQ(WarningOf(job, *stubs_), warning.substr(0, limits::kMaxWarningBytes - 1));
}

TEST_F(ReportSizeTest, AHugeDataReportIsCut) {
  const v1::Job job = MustCreate(GoodRequest());
  v1::AttemptStatus status = StatusOf(agent_->AwaitStart(), v1::ATTEMPT_PHASE_RUNNING);
  v1::DataReport* report = status.mutable_data_report();
  report->set_error_count(5000);
  for (int i = 0; i < 1000; ++i) {
    v1::DataError* error = report->add_errors();
    error->set_line(i);
    error->set_reason(std::string(3'000, 'r'));
    error->set_field(std::string(1'000, 'f'));
  }
  for (int i = 0; i < 10'000; ++i) report->add_length_histogram()->set_up_to_tokens(i);
  report->GetReflection()->MutableUnknownFields(report)->AddLengthDelimited(99, std::string(10'000, 'u'));
  ASSERT_TRUE(Sync(status).ok());
  ExpectReadable(job.id());
  const v1::DataReport kept = Get(job.id()).data_report();
  EXPECT_EQ(kept.error_count(), 5000);
  ASSERT_EQ(kept.errors_size(), limits::kMaxDatasetErrorsReported);
  EXPECT_EQ(kept.errors(0).reason().size(), static_cast<size_t>(limits::kMaxDataErrorBytes));
  EXPECT_EQ(kept.errors(0).field().size(), 1'000u);
  EXPECT_EQ(kept.length_histogram_size(), limits::kMaxLengthBuckets);
  EXPECT_LT(kept.ByteSizeLong(), size_t{400'000});
}

TEST_F(ReportSizeTest, WhatAPointBringsThatWeDoNotKnowIsNotKept) {
  v1::Job job;
  v1::AttemptStatus status = Running(StartTraining(&job), 1);
  v1::TrainingProgress* progress = status.mutable_progress(0);
  progress->GetReflection()->MutableUnknownFields(progress)->AddLengthDelimited(99, std::string(kNearlyAMessage, 'u'));
  ASSERT_TRUE(Sync(status).ok());
  ExpectReadable(job.id());
  EXPECT_EQ(Get(job.id()).progress().step(), 1);
  EXPECT_LT(Get(job.id()).ByteSizeLong(), size_t{100'000});
}

TEST_F(ReportSizeTest, HugeAndNegativeNumbersOverflowNothing) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  v1::SyncRequest request;
  request.set_session_id(agent_->session_id());
  *request.add_attempts() = Running(start, 1);
  v1::SyncResponse response;
  for (const int64_t number : {kHuge, kHuge - 2, int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    request.set_sync_number(number);
    const grpc::Status refused = Call(*stubs_->workers, &v1::WorkerService::Stub::Sync, request, &response);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << number;
    EXPECT_NE(DetailsOf(refused).Of("sync_number"), "") << number;
  }
  request.set_sync_number(1'000);
  for (const int64_t bytes : {kHuge, std::numeric_limits<int64_t>::min()}) {
    request.set_host_bytes_available(bytes);
    request.set_disk_bytes_available(bytes);
    const grpc::Status synced = Call(*stubs_->workers, &v1::WorkerService::Stub::Sync, request, &response);
    EXPECT_TRUE(synced.ok()) << synced.error_message();
    request.set_sync_number(request.sync_number() + 1);
  }
  v1::AttemptStatus status = Running(start, 2);
  status.mutable_data_report()->set_tokens(1);
  status.mutable_data_report()->set_eval_tokens(kHuge);
  EXPECT_EQ(Sync(status).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Get(job.id()).state(), v1::RUNNING);
}

TEST_F(ReportSizeTest, AnInventoryHasNoLongTexts) {
  const std::string large(100'000, 'x');
  const auto open = [&](auto change) {
    v1::OpenSessionRequest request = FakeAgent(&*stubs_, "worker-2").Hello(int64_t{8} << 30);
    change(request);
    v1::OpenSessionResponse response;
    return Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &response).error_code();
  };
  const auto refused = grpc::StatusCode::INVALID_ARGUMENT;
  EXPECT_EQ(open([](auto&) {}), grpc::StatusCode::OK);
  EXPECT_EQ(open([&](auto& r) { r.set_build(large); }), refused);
  EXPECT_EQ(open([&](auto& r) { r.mutable_inventory()->set_host_name(large); }), refused);
  EXPECT_EQ(open([&](auto& r) { r.mutable_inventory()->mutable_models(0)->set_storage(large); }), refused);
  EXPECT_EQ(open([&](auto& r) { r.mutable_inventory()->mutable_models(0)->set_tokenizer_digest(large); }), refused);
  EXPECT_EQ(open([&](auto& r) { r.mutable_inventory()->mutable_models(0)->set_size_bytes(kHuge); }), refused);
  const auto facts = [](auto& r) { return r.mutable_inventory()->mutable_devices(0)->mutable_facts(); };
  EXPECT_EQ(open([&](auto& r) { facts(r)->set_device_class(large); }), refused);
  EXPECT_EQ(open([&](auto& r) { facts(r)->set_isa(large); }), refused);
  EXPECT_EQ(open([&](auto& r) { facts(r)->set_host_bytes(kHuge); }), refused);
}

}  // namespace
}  // namespace longhaul::server
