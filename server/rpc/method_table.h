// Every method that the gRPC server answers, who may call it and whether it is audited. There is no other place that
// says so: a handler names its method (server/rpc/gate.h), and one that is not in the table does not compile.
// tests/server/rpc/method_table_test.cc compares the table with the protos and calls every method.
#pragma once

#include <array>
#include <string_view>

#include "server/core/access.h"

namespace longhaul::server {

struct MethodRule {
  std::string_view name;  // "FineTuneService/GetFineTuneJob" of longhaul.v1, or a full name
  unsigned scopes = 0;    // any of these; 0 = whoever connects
  bool audited = false;
};

inline constexpr unsigned kViewing = static_cast<unsigned>(Scope::kViewer);
inline constexpr unsigned kSubmitting = static_cast<unsigned>(Scope::kSubmitter);
inline constexpr unsigned kAdministering = static_cast<unsigned>(Scope::kAdmin);
inline constexpr unsigned kWorking = static_cast<unsigned>(Scope::kWorker);

inline constexpr auto kMethods = std::to_array<MethodRule>({
    {"FineTuneService/CreateFineTuneJob", kSubmitting, true},
    {"FineTuneService/GetFineTuneJob", kViewing},
    {"FineTuneService/ListFineTuneJobs", kViewing},
    {"FineTuneService/CancelFineTuneJob", kSubmitting, true},
    {"FineTuneService/PauseFineTuneJob", kSubmitting, true},
    {"FineTuneService/ResumeFineTuneJob", kSubmitting, true},
    {"FineTuneService/DeleteFineTuneJob", kSubmitting, true},
    {"FineTuneService/EstimateFineTuneJob", kViewing},
    {"FineTuneService/ExplainFineTuneJob", kViewing},
    {"FineTuneService/WatchFineTuneJob", kViewing},
    {"FineTuneService/ReadLogs", kViewing},
    {"FineTuneService/ListAttempts", kViewing},
    {"FineTuneService/ListCheckpoints", kViewing},
    {"FineTuneService/ListMetrics", kViewing},
    // It changes one thing, when unreferenced blobs that the caller may see are collected: later. Asked before each
    // upload, of a thousand blobs at once, it would be most of the audit log.
    {"BlobService/FindMissing", kSubmitting | kWorking},
    // Of a worker only what is refused: its blobs are the job's once CommitCheckpoint or CommitArtifact names them.
    {"BlobService/Write", kSubmitting | kWorking, true},
    {"BlobService/QueryWriteStatus", kSubmitting | kWorking},
    {"BlobService/Read", kViewing | kWorking},
    {"WorkerAdminService/ListWorkers", kViewing},
    {"WorkerAdminService/GetWorker", kViewing},
    {"WorkerAdminService/DrainWorker", kAdministering, true},
    {"WorkerAdminService/UndrainWorker", kAdministering, true},
    {"WorkerService/OpenSession", kWorking, true},
    // The heartbeat of an audited session. What it changes are the job's attempts, which are the job's events.
    {"WorkerService/Sync", kWorking},
    // The first of an attempt, and what is refused: a checkpoint every few seconds is an event of the job, as a Sync's.
    {"WorkerService/CommitCheckpoint", kWorking, true},
    {"WorkerService/CommitArtifact", kWorking, true},
    // Of the same session, some times a second: what a trainer prints.
    {"WorkerService/AppendLog", kWorking},
    {"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", kAllScopes},
    // Balancers ask, who have no credentials. It says that the server is there, as an open port does.
    {"grpc.health.v1.Health/Check", 0},
    {"grpc.health.v1.Health/Watch", 0},
});

// A method's row. A constant expression, or it does not compile: a name that the table lacks has no row.
class Method {
 public:
  consteval Method(const char* name) : rule_(Find(name)) {}  // NOLINT: a literal is meant
  const MethodRule& rule() const { return *rule_; }

 private:
  static consteval const MethodRule* Find(std::string_view name) {
    for (const MethodRule& rule : kMethods) {
      if (rule.name == name) return &rule;
    }
    throw "the method is not in kMethods";
  }
  const MethodRule* rule_;
};

}  // namespace longhaul::server
