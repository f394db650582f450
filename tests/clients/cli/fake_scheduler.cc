#include "tests/clients/cli/fake_scheduler.h"

#include <algorithm>

#include "base/hash.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace longhaul::cli {

grpc::Status DetailedError(grpc::StatusCode code, const std::string& reason, const std::string& message,
                           const std::vector<std::pair<std::string, std::string>>& violations) {
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("longhaul.v1");
  details.add_details()->PackFrom(info);
  google::rpc::BadRequest bad;
  for (const auto& [field, description] : violations) {
    auto* violation = bad.add_field_violations();
    violation->set_field(field);
    violation->set_description(description);
  }
  if (!violations.empty()) details.add_details()->PackFrom(bad);
  return {code, message, details.SerializeAsString()};
}

grpc::Status FakeJobs::CreateFineTuneJob(grpc::ServerContext*, const v1::CreateFineTuneJobRequest* request,
                                         v1::Job* job) {
  (request->validate_only() ? validated : created).push_back(*request);
  if (!request->validate_only() && lost_creates > 0) return --lost_creates, grpc::Status(lost, "Socket closed");
  if (!create_status.ok()) return create_status;
  if (!request->validate_only()) job->set_id("ftjob-" + std::string(19, 'n') + std::to_string(created.size()));
  job->set_suffix(request->suffix());
  *job->mutable_spec() = request->spec();
  *job->mutable_labels() = request->labels();
  job->set_state(v1::VALIDATING);
  if (!request->validate_only()) jobs.push_back(*job);
  return grpc::Status::OK;
}

grpc::Status FakeJobs::GetFineTuneJob(grpc::ServerContext*, const v1::GetFineTuneJobRequest* request, v1::Job* job) {
  for (const v1::Job& known : jobs) {
    if (known.id() != request->id()) continue;
    *job = known;
    return grpc::Status::OK;
  }
  return DetailedError(grpc::StatusCode::NOT_FOUND, "JOB_NOT_FOUND", "no job " + request->id());
}

grpc::Status FakeJobs::ListFineTuneJobs(grpc::ServerContext*, const v1::ListFineTuneJobsRequest* request,
                                        v1::ListFineTuneJobsResponse* response) {
  size_t index = request->page_token().empty() ? 0 : std::stoul(request->page_token());
  for (; index < jobs.size(); ++index) {
    if (jobs[index].id().rfind(request->id_prefix(), 0) != 0) continue;
    if (request->project() != "-" && request->project() != jobs[index].project()) continue;
    if (request->states_size() > 0 &&
        std::find(request->states().begin(), request->states().end(), jobs[index].state()) == request->states().end()) {
      continue;
    }
    if (response->jobs_size() == request->page_size()) {
      response->set_next_page_token(std::to_string(index));
      break;
    }
    *response->add_jobs() = jobs[index];
  }
  return grpc::Status::OK;
}

grpc::Status FakeJobs::CancelFineTuneJob(grpc::ServerContext*, const v1::CancelFineTuneJobRequest* request,
                                         v1::Job* job) {
  for (v1::Job& known : jobs) {
    if (known.id() != request->id()) continue;
    if (known.state() == v1::SUCCEEDED) {
      return DetailedError(grpc::StatusCode::FAILED_PRECONDITION, "ILLEGAL_TRANSITION", known.id() + " is SUCCEEDED");
    }
    known.set_state(v1::CANCELLING);
    *job = known;
  }
  return grpc::Status::OK;
}

grpc::Status FakeJobs::PauseFineTuneJob(grpc::ServerContext*, const v1::PauseFineTuneJobRequest* request,
                                        v1::Job* job) {
  job->set_id(request->id());
  job->set_state(v1::PAUSING);
  return grpc::Status::OK;
}

grpc::Status FakeJobs::ResumeFineTuneJob(grpc::ServerContext*, const v1::ResumeFineTuneJobRequest* request,
                                         v1::Job* job) {
  job->set_id(request->id());
  job->set_state(v1::QUEUED);
  return grpc::Status::OK;
}

grpc::Status FakeJobs::ExplainFineTuneJob(grpc::ServerContext*, const v1::ExplainFineTuneJobRequest* request,
                                          v1::ExplainFineTuneJobResponse* response) {
  *response = explanation;
  response->mutable_job()->set_id(request->id());
  return grpc::Status::OK;
}

grpc::Status FakeJobs::EstimateFineTuneJob(grpc::ServerContext*, const v1::EstimateFineTuneJobRequest* request,
                                           v1::EstimateFineTuneJobResponse* response) {
  estimated = *request;
  *response = estimate;
  return grpc::Status::OK;
}

grpc::Status FakeJobs::WatchFineTuneJob(grpc::ServerContext* context, const v1::WatchFineTuneJobRequest* request,
                                        WatchWriter* writer) {
  watch_requests.push_back(*request);
  if (watches.empty()) return DetailedError(grpc::StatusCode::NOT_FOUND, "JOB_NOT_FOUND", "no job " + request->id());
  return watches[std::min(watch_requests.size(), watches.size()) - 1](context, *request, writer);
}

grpc::Status FakeJobs::ReadLogs(grpc::ServerContext*, const v1::ReadLogsRequest* request,
                                grpc::ServerWriter<v1::ReadLogsResponse>* writer) {
  constexpr size_t kPiece = 7;
  for (size_t at = static_cast<size_t>(request->offset()); at < log.size(); at += kPiece) {
    v1::ReadLogsResponse response;
    response.set_attempt(1);
    response.set_offset(static_cast<int64_t>(at));
    response.set_data(log.substr(at, kPiece));
    writer->Write(response);
  }
  return grpc::Status::OK;
}

grpc::Status FakeJobs::ListMetrics(grpc::ServerContext*, const v1::ListMetricsRequest* request,
                                   v1::ListMetricsResponse* response) {
  constexpr int kPage = 3;
  for (const v1::TrainingProgress& point : points) {
    if (point.step() <= request->after_step()) continue;
    if (response->points_size() == kPage) {
      response->set_has_more(true);
      break;
    }
    *response->add_points() = point;
  }
  return grpc::Status::OK;
}

grpc::Status FakeBlobs::FindMissing(grpc::ServerContext*, const v1::FindMissingRequest* request,
                                    v1::FindMissingResponse* response) {
  for (const v1::BlobName& name : request->blobs()) {
    if (!blobs.contains(name.sha256())) *response->add_missing() = name;
  }
  return grpc::Status::OK;
}

grpc::Status FakeBlobs::QueryWriteStatus(grpc::ServerContext*, const v1::QueryWriteStatusRequest* request,
                                         v1::QueryWriteStatusResponse* response) {
  const std::string& sha256 = request->blob().sha256();
  response->set_complete(blobs.contains(sha256));
  response->set_committed_bytes(static_cast<int64_t>(partials[sha256].size()));
  return grpc::Status::OK;
}

grpc::Status FakeBlobs::Write(grpc::ServerContext*, grpc::ServerReader<v1::WriteBlobRequest>* reader,
                              v1::WriteBlobResponse* response) {
  v1::WriteBlobRequest message;
  std::string sha256;
  while (reader->Read(&message)) {
    if (message.has_blob()) {
      sha256 = message.blob().sha256();
      write_offsets.push_back(message.offset());
    }
    if (!uploaded_by_other.empty()) {
      blobs[sha256] = std::exchange(uploaded_by_other, "");
      return DetailedError(grpc::StatusCode::UNAVAILABLE, "BLOB_BUSY", "another upload is under way");
    }
    std::string& bytes = partials[sha256];
    if (static_cast<size_t>(message.offset()) != bytes.size()) {
      return DetailedError(grpc::StatusCode::INVALID_ARGUMENT, "BAD_OFFSET", "offset is not where the upload stands");
    }
    bytes += message.data();
    if (break_writes > 0) {
      --break_writes;
      return {broken, "the server goes away"};
    }
    if (!message.finish()) continue;
    if (Sha256Hex(bytes) != sha256) {
      partials.erase(sha256);
      return DetailedError(grpc::StatusCode::INVALID_ARGUMENT, "BLOB_HASH_MISMATCH", "the SHA-256 differs");
    }
    blobs[sha256] = bytes;
    response->set_committed_bytes(static_cast<int64_t>(bytes.size()));
  }
  return grpc::Status::OK;
}

grpc::Status FakeBlobs::Read(grpc::ServerContext*, const v1::ReadBlobRequest* request,
                             grpc::ServerWriter<v1::ReadBlobResponse>* writer) {
  read_offsets.push_back(request->offset());
  const auto found = blobs.find(request->blob().sha256());
  if (found == blobs.end()) return DetailedError(grpc::StatusCode::NOT_FOUND, "BLOB_MISSING", "no such blob");
  constexpr size_t kPiece = 1000;
  for (size_t at = static_cast<size_t>(request->offset()); at < found->second.size(); at += kPiece) {
    if (break_reads > 0 && at >= found->second.size() / 2) {
      --break_reads;
      return {broken, "the server goes away"};
    }
    v1::ReadBlobResponse response;
    response.set_data(found->second.substr(at, kPiece));
    writer->Write(response);
  }
  return grpc::Status::OK;
}

grpc::Status FakeWorkers::ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest* request,
                                      v1::ListWorkersResponse* response) {
  const int at = request->page_token().empty() ? 0 : std::stoi(request->page_token());
  if (at < workers.workers_size()) *response->add_workers() = workers.workers(at);
  if (at + 1 < workers.workers_size()) response->set_next_page_token(std::to_string(at + 1));
  return grpc::Status::OK;
}

grpc::Status FakeWorkers::DrainWorker(grpc::ServerContext*, const v1::DrainWorkerRequest* request, v1::Worker* worker) {
  worker->set_id(request->id());
  worker->set_state(v1::WORKER_ONLINE);
  worker->set_draining(true);
  return grpc::Status::OK;
}

void FakeScheduler::Start() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port_), grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&jobs);
  builder.RegisterService(&blobs);
  builder.RegisterService(&workers);
  server_ = builder.BuildAndStart();
}

void FakeScheduler::Stop() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::time_point());
  server_.reset();
}

}  // namespace longhaul::cli
