#include "server/rpc/fine_tune_service.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "longhaul/v1/fine_tune_service.grpc.pb.h"
#include "server/core/page_token.h"
#include "server/rpc/convert.h"
#include "server/rpc/fine_tune_create.h"
#include "server/rpc/fine_tune_explain.h"
#include "server/rpc/list_page.h"
#include "server/rpc/log_reactor.h"
#include "server/rpc/stream_reactor.h"
#include "server/rpc/visibility.h"
#include "server/rpc/watch_reactor.h"

namespace longhaul::server {
namespace {

using Base = v1::FineTuneService::WithCallbackMethod_WatchFineTuneJob<
    v1::FineTuneService::WithCallbackMethod_ReadLogs<v1::FineTuneService::Service>>;

absl::StatusOr<JobFilter> FilterOf(const Caller& caller, const v1::ListFineTuneJobsRequest& request) {
  JobFilter filter;
  // "-": every project, of those who may see every project (AIP-159). An id is looked for wherever the caller may look.
  const bool by_id = request.project().empty() && !request.id_prefix().empty();
  const bool every = caller.all_projects && (request.project() == "-" || by_id);
  if (!every) {
    LH_ASSIGN_OR_RETURN(filter.project, ProjectOf(caller, request.project()));
  }
  LH_ASSIGN_OR_RETURN(filter.page_size, PageSize(request.page_size(), limits::kDefaultPageSize));
  for (int i = 0; i < request.states_size(); ++i) {
    LH_ASSIGN_OR_RETURN(JobState state, FromProto(request.states(i), "states[" + std::to_string(i) + "]"));
    const bool again = std::find(filter.states.begin(), filter.states.end(), state) != filter.states.end();
    if (!again) filter.states.push_back(state);
  }
  // Every number of labels is another query to prepare.
  if (static_cast<int>(request.labels_size()) > limits::kMaxLabelsInFilter) {
    return InvalidField("labels", "has " + std::to_string(request.labels_size()) + " entries; at most " +
                                      std::to_string(limits::kMaxLabelsInFilter));
  }
  filter.model = request.model();
  filter.labels = {request.labels().begin(), request.labels().end()};
  if (request.has_created_after()) filter.created_after_micros = FromTimestamp(request.created_after());
  if (request.has_created_before()) filter.created_before_micros = FromTimestamp(request.created_before());
  filter.id_prefix = request.id_prefix();
  filter.oldest_first = request.oldest_first();
  filter.page_token = request.page_token();
  return filter;
}

class FineTuneService final : public Base {
 public:
  explicit FineTuneService(const RpcContext* context)
      : context_(*context),
        watch_{&context_.gate, context_.hub, context_.store, [this](const Job& job) { return ShowJob(context_, job); }},
        logs_{&context_.gate, context_.hub, context_.store, context_.logs} {}

  grpc::Status CreateFineTuneJob(grpc::ServerContext* call, const v1::CreateFineTuneJobRequest* request,
                                 v1::Job* response) override {
    return context_.gate.Mutation(*call, "FineTuneService/CreateFineTuneJob", [&](const Caller& caller, Audit* audit) {
      return Put(CreateJob(context_, caller, *request, audit), response);
    });
  }

  grpc::Status EstimateFineTuneJob(grpc::ServerContext* call, const v1::EstimateFineTuneJobRequest* request,
                                   v1::EstimateFineTuneJobResponse* response) override {
    return context_.gate.Unary(*call, "FineTuneService/EstimateFineTuneJob", [&](const Caller& caller) {
      return Put(EstimateJob(context_, caller, *request, [call] { return call->IsCancelled(); }), response);
    });
  }

  grpc::Status GetFineTuneJob(grpc::ServerContext* call, const v1::GetFineTuneJobRequest* request,
                              v1::Job* response) override {
    return context_.gate.Unary(*call, "FineTuneService/GetFineTuneJob",
                               [&](const Caller& caller) { return PutJob(FindJob(caller, request->id()), response); });
  }

  grpc::Status ListFineTuneJobs(grpc::ServerContext* call, const v1::ListFineTuneJobsRequest* request,
                                v1::ListFineTuneJobsResponse* response) override {
    return context_.gate.Unary(*call, "FineTuneService/ListFineTuneJobs", [&](const Caller& caller) {
      absl::StatusOr<JobFilter> filter = FilterOf(caller, *request);
      if (!filter.ok()) return filter.status();
      absl::StatusOr<JobPage> page = context_.store->ListJobs(*filter);
      if (!page.ok()) return page.status();
      int64_t bytes = 0;
      uint64_t last_number = 0;
      const std::vector<std::optional<WaitInfo>> waits = context_.dispatcher->WaitsOf(page->jobs);
      for (size_t i = 0; i < page->jobs.size(); ++i) {
        const Job& job = page->jobs[i];
        v1::Job shown = ToProto(job, waits[i]);
        if (shown.has_data_report()) shown.mutable_data_report()->clear_errors();  // Get tells them
        bytes += static_cast<int64_t>(shown.ByteSizeLong());
        if (bytes > limits::kMaxListBytes && response->jobs_size() > 0) {
          response->set_next_page_token(MakePageToken(*filter, last_number));
          return absl::OkStatus();
        }
        last_number = job.create_number;
        *response->add_jobs() = std::move(shown);
      }
      response->set_next_page_token(page->next_page_token);
      return absl::OkStatus();
    });
  }

  grpc::Status CancelFineTuneJob(grpc::ServerContext* call, const v1::CancelFineTuneJobRequest* request,
                                 v1::Job* response) override {
    return Change(*call, "FineTuneService/CancelFineTuneJob", request->id(), &Dispatcher::Cancel, response);
  }

  grpc::Status PauseFineTuneJob(grpc::ServerContext* call, const v1::PauseFineTuneJobRequest* request,
                                v1::Job* response) override {
    return Change(*call, "FineTuneService/PauseFineTuneJob", request->id(), &Dispatcher::Pause, response);
  }

  grpc::Status ResumeFineTuneJob(grpc::ServerContext* call, const v1::ResumeFineTuneJobRequest* request,
                                 v1::Job* response) override {
    return Change(*call, "FineTuneService/ResumeFineTuneJob", request->id(), &Dispatcher::Resume, response);
  }

  grpc::Status ExplainFineTuneJob(grpc::ServerContext* call, const v1::ExplainFineTuneJobRequest* request,
                                  v1::ExplainFineTuneJobResponse* response) override {
    return context_.gate.Unary(*call, "FineTuneService/ExplainFineTuneJob", [&](const Caller& caller) {
      absl::StatusOr<Job> job = FindJob(caller, request->id());
      if (!job.ok()) return job.status();
      return Put(ExplainJob(context_, *job), response);
    });
  }

  grpc::Status DeleteFineTuneJob(grpc::ServerContext* call, const v1::DeleteFineTuneJobRequest* request,
                                 google::protobuf::Empty*) override {
    return context_.gate.Mutation(*call, "FineTuneService/DeleteFineTuneJob", [&](const Caller& caller, Audit* audit) {
      audit->record.target = request->id();
      absl::StatusOr<Job> job = FindJob(caller, request->id());
      if (!job.ok()) return job.status();
      audit->record.project = job->project;
      LH_RETURN_IF_ERROR(context_.dispatcher->Delete(job->id, audit));
      // The deletion is committed; logs that cannot go now go within a minute.
      context_.logs->Delete(job->id).IgnoreError();
      return absl::OkStatus();
    });
  }

  grpc::Status ListAttempts(grpc::ServerContext* call, const v1::ListAttemptsRequest* request,
                            v1::ListAttemptsResponse* response) override {
    return context_.gate.Unary(*call, "FineTuneService/ListAttempts", [&](const Caller& caller) {
      LH_RETURN_IF_ERROR(FindJob(caller, request->id()).status());
      LH_ASSIGN_OR_RETURN(const int page_size, PageSize(request->page_size(), limits::kMaxPageSize));
      LH_ASSIGN_OR_RETURN(const int64_t after, NumberOfPageToken(request->page_token()));
      absl::StatusOr<std::vector<Attempt>> attempts = context_.store->ListAttempts(request->id());
      if (!attempts.ok()) return attempts.status();
      PageRoom room(page_size);
      for (const Attempt& attempt : *attempts) {
        if (attempt.number <= after) continue;
        v1::Attempt shown = ToProto(attempt);
        if (!room.Takes(shown)) {
          response->set_next_page_token(std::to_string(response->attempts().rbegin()->number()));
          break;
        }
        *response->add_attempts() = std::move(shown);
      }
      return absl::OkStatus();
    });
  }

  grpc::Status ListCheckpoints(grpc::ServerContext* call, const v1::ListCheckpointsRequest* request,
                               v1::ListCheckpointsResponse* response) override {
    return context_.gate.Unary(*call, "FineTuneService/ListCheckpoints", [&](const Caller& caller) {
      LH_RETURN_IF_ERROR(FindJob(caller, request->id()).status());
      LH_ASSIGN_OR_RETURN(const int page_size, PageSize(request->page_size(), limits::kMaxPageSize));
      LH_ASSIGN_OR_RETURN(const int64_t after, NumberOfPageToken(request->page_token()));
      absl::StatusOr<std::vector<Checkpoint>> checkpoints = context_.store->ListCheckpoints(request->id());
      if (!checkpoints.ok()) return checkpoints.status();
      PageRoom room(page_size);
      for (const Checkpoint& checkpoint : *checkpoints) {
        if (checkpoint.step <= after) continue;
        v1::Checkpoint shown = ToProto(checkpoint);
        if (!room.Takes(shown)) {
          response->set_next_page_token(std::to_string(response->checkpoints().rbegin()->step()));
          break;
        }
        *response->add_checkpoints() = std::move(shown);
      }
      return absl::OkStatus();
    });
  }

  grpc::Status ListMetrics(grpc::ServerContext* call, const v1::ListMetricsRequest* request,
                           v1::ListMetricsResponse* response) override {
    return context_.gate.Unary(*call, "FineTuneService/ListMetrics", [&](const Caller& caller) {
      LH_RETURN_IF_ERROR(FindJob(caller, request->id()).status());
      LH_ASSIGN_OR_RETURN(const int page_size, PageSize(request->page_size(), limits::kMaxPageSize));
      absl::StatusOr<std::vector<MetricPoint>> points =
          context_.store->ListMetrics(request->id(), request->after_step(), page_size + 1);
      if (!points.ok()) return points.status();
      response->set_has_more(points->size() > static_cast<size_t>(page_size));
      if (response->has_more()) points->resize(static_cast<size_t>(page_size));
      for (const MetricPoint& point : *points) *response->add_points() = ToProto(point);
      return absl::OkStatus();
    });
  }

  grpc::ServerWriteReactor<v1::WatchFineTuneJobResponse>* WatchFineTuneJob(
      grpc::CallbackServerContext* call, const v1::WatchFineTuneJobRequest* request) override {
    absl::StatusOr<StreamCaller> caller = AdmitStream(context_.gate, *call, "FineTuneService/WatchFineTuneJob");
    if (!caller.ok()) {
      return new EndedStream<v1::WatchFineTuneJobResponse>(
          context_.gate.End("FineTuneService/WatchFineTuneJob", caller.status()));
    }
    std::optional<int64_t> after;
    if (request->has_after_sequence()) after = request->after_sequence();
    return StartWatch(&watch_, *std::move(caller), request->id(), after);
  }

  grpc::ServerWriteReactor<v1::ReadLogsResponse>* ReadLogs(grpc::CallbackServerContext* call,
                                                           const v1::ReadLogsRequest* request) override {
    absl::StatusOr<StreamCaller> caller = AdmitLogStream(call);
    if (!caller.ok()) {
      return new EndedStream<v1::ReadLogsResponse>(context_.gate.End("FineTuneService/ReadLogs", caller.status()));
    }
    return StartLogStream(&logs_, *std::move(caller), *request);
  }

 private:
  absl::StatusOr<StreamCaller> AdmitLogStream(grpc::CallbackServerContext* call) const {
    LH_ASSIGN_OR_RETURN(StreamCaller caller, AdmitStream(context_.gate, *call, "FineTuneService/ReadLogs"));
    LH_ASSIGN_OR_RETURN(caller.log_slot, context_.gate.limits()->TakeLogStream(caller.caller));
    caller.transfer = std::make_unique<TransferWatch::Transfer>(context_.transfers, call);
    return caller;
  }

  template <typename T>
  static absl::Status Put(absl::StatusOr<T> value, T* response) {
    if (value.ok()) *response = *std::move(value);
    return value.status();
  }
  absl::Status PutJob(const absl::StatusOr<Job>& job, v1::Job* response) const {
    if (job.ok()) *response = ShowJob(context_, *job);
    return job.status();
  }

  absl::StatusOr<Job> FindJob(const Caller& caller, const std::string& id) const {
    if (id.empty()) return InvalidField("id", "is empty; it must name a job");
    LH_ASSIGN_OR_RETURN(Job job, context_.store->GetJob(id));
    if (!caller.MaySee(job.project)) return NoSuchJob(id);
    return job;
  }

  grpc::Status Change(const grpc::ServerContext& call, Method method, const std::string& id,
                      absl::StatusOr<Job> (Dispatcher::*change)(const std::string&, Audit*), v1::Job* response) const {
    return context_.gate.Mutation(call, method, [&](const Caller& caller, Audit* audit) {
      audit->record.target = id;
      absl::StatusOr<Job> job = FindJob(caller, id);
      if (!job.ok()) return job.status();
      audit->record.project = job->project;
      return PutJob((context_.dispatcher->*change)(id, audit), response);
    });
  }

  const RpcContext& context_;
  const WatchContext watch_;
  const LogContext logs_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFineTuneService(const RpcContext* context) {
  return std::make_unique<FineTuneService>(context);
}

}  // namespace longhaul::server
