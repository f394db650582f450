// The scheduler's public services in process, scripted by a test: real sockets, real gRPC, no state beyond what is set.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "longhaul/v1/blob_service.grpc.pb.h"
#include "longhaul/v1/fine_tune_service.grpc.pb.h"
#include "longhaul/v1/worker_admin_service.grpc.pb.h"

namespace longhaul::cli {

// An error with ErrorInfo and BadRequest details, as the real server builds them.
grpc::Status DetailedError(grpc::StatusCode code, const std::string& reason, const std::string& message,
                           const std::vector<std::pair<std::string, std::string>>& violations = {});

class FakeJobs final : public v1::FineTuneService::Service {
 public:
  using WatchWriter = grpc::ServerWriter<v1::WatchFineTuneJobResponse>;
  // One script a call, in order; the last one serves every later call.
  std::vector<std::function<grpc::Status(grpc::ServerContext*, const v1::WatchFineTuneJobRequest&, WatchWriter*)>>
      watches;
  std::vector<v1::WatchFineTuneJobRequest> watch_requests;
  std::vector<v1::Job> jobs;
  std::vector<v1::CreateFineTuneJobRequest> created;
  std::vector<v1::CreateFineTuneJobRequest> validated;
  grpc::Status create_status;
  int lost_creates = 0;  // that many Creates lose their connection, as gRPC tells it
  grpc::StatusCode lost = grpc::StatusCode::UNAVAILABLE;
  v1::EstimateFineTuneJobResponse estimate;
  v1::EstimateFineTuneJobRequest estimated;  // the last one
  v1::ExplainFineTuneJobResponse explanation;
  std::string log;
  std::vector<v1::TrainingProgress> points;

  grpc::Status CreateFineTuneJob(grpc::ServerContext*, const v1::CreateFineTuneJobRequest*, v1::Job*) override;
  grpc::Status GetFineTuneJob(grpc::ServerContext*, const v1::GetFineTuneJobRequest*, v1::Job*) override;
  grpc::Status ListFineTuneJobs(grpc::ServerContext*, const v1::ListFineTuneJobsRequest*,
                                v1::ListFineTuneJobsResponse*) override;
  grpc::Status CancelFineTuneJob(grpc::ServerContext*, const v1::CancelFineTuneJobRequest*, v1::Job*) override;
  grpc::Status PauseFineTuneJob(grpc::ServerContext*, const v1::PauseFineTuneJobRequest*, v1::Job*) override;
  grpc::Status ResumeFineTuneJob(grpc::ServerContext*, const v1::ResumeFineTuneJobRequest*, v1::Job*) override;
  grpc::Status ExplainFineTuneJob(grpc::ServerContext*, const v1::ExplainFineTuneJobRequest*,
                                  v1::ExplainFineTuneJobResponse*) override;
  grpc::Status EstimateFineTuneJob(grpc::ServerContext*, const v1::EstimateFineTuneJobRequest*,
                                   v1::EstimateFineTuneJobResponse*) override;
  grpc::Status WatchFineTuneJob(grpc::ServerContext*, const v1::WatchFineTuneJobRequest*, WatchWriter*) override;
  grpc::Status ReadLogs(grpc::ServerContext*, const v1::ReadLogsRequest*,
                        grpc::ServerWriter<v1::ReadLogsResponse>*) override;
  grpc::Status ListMetrics(grpc::ServerContext*, const v1::ListMetricsRequest*, v1::ListMetricsResponse*) override;
};

class FakeBlobs final : public v1::BlobService::Service {
 public:
  std::map<std::string, std::string> blobs;     // complete, by SHA-256
  std::map<std::string, std::string> partials;  // received so far
  std::string uploaded_by_other;                // not empty: the next Write is BLOB_BUSY, and then the blob is there
  int break_writes = 0;                         // that many Writes fail after their first message
  grpc::StatusCode broken = grpc::StatusCode::UNAVAILABLE;  // how such a call ends
  int break_reads = 0;                                      // that many Reads fail half way
  std::vector<int64_t> write_offsets;                       // where each Write began
  std::vector<int64_t> read_offsets;

  grpc::Status FindMissing(grpc::ServerContext*, const v1::FindMissingRequest*, v1::FindMissingResponse*) override;
  grpc::Status QueryWriteStatus(grpc::ServerContext*, const v1::QueryWriteStatusRequest*,
                                v1::QueryWriteStatusResponse*) override;
  grpc::Status Write(grpc::ServerContext*, grpc::ServerReader<v1::WriteBlobRequest>*, v1::WriteBlobResponse*) override;
  grpc::Status Read(grpc::ServerContext*, const v1::ReadBlobRequest*,
                    grpc::ServerWriter<v1::ReadBlobResponse>*) override;
};

class FakeWorkers final : public v1::WorkerAdminService::Service {
 public:
  v1::ListWorkersResponse workers;  // one a page
  grpc::Status ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*, v1::ListWorkersResponse*) override;
  grpc::Status DrainWorker(grpc::ServerContext*, const v1::DrainWorkerRequest*, v1::Worker*) override;
};

// Listens on a free loopback port from Start to Stop; Start again takes the same port.
class FakeScheduler {
 public:
  FakeScheduler() { Start(); }
  ~FakeScheduler() { Stop(); }
  void Start();
  void Stop();
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  FakeJobs jobs;
  FakeBlobs blobs;
  FakeWorkers workers;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace longhaul::cli
