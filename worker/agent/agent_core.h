// The agent without its transport: the session with the scheduler and the attempts of this machine, found again after a
// restart. One thread calls everything here; Run is its loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/limits.h"
#include "longhaul/v1/worker_service.pb.h"
#include "worker/agent/attempt_runner.h"
#include "worker/agent/local_model.h"
#include "worker/agent/mailbox.h"
#include "worker/agent/oom_watch.h"
#include "worker/agent/scheduler_client.h"
#include "worker/agent/session.h"

namespace longhaul::agent {

inline constexpr int kProtocolVersion = 1;

struct AgentOptions {
  std::string worker_id;
  std::string build;
  std::string state_dir;     // attempts/ and cache/ are below it
  std::string trainer_path;  // longhaul-train
  v1::WorkerInventory inventory;
  std::map<std::string, LocalModel> models;  // by content digest
  // Runs on AgentParts::looks every model_look_ms: the models where they are others (ModelWatch::Look). Null:
  // never.
  int64_t model_look_ms = limits::kModelLookMs;
  std::function<absl::StatusOr<std::optional<ModelOffer>>(bool anyway)> look_for_models;
  int64_t drain_grace_ms = 60'000;  // then trainers are left to the next agent
  std::function<int64_t()> oom_kills = OomKills;
};

// Threads that run the transfers, and where the agent's lines go.
struct AgentParts {
  const Clock* clock = nullptr;
  SchedulerClient* client = nullptr;
  Mailbox* mailbox = nullptr;
  TaskRunner* fetches = nullptr;
  TaskRunner* uploads = nullptr;
  TaskRunner* logs = nullptr;
  TaskRunner* looks = nullptr;  // where options have look_for_models
  std::function<void(const std::string&)> log;
};

class AgentCore final : private SessionDelegate {
 public:
  // The parts outlive it, and answers of the client come through the mailbox only while it lives.
  AgentCore(AgentOptions options, const AgentParts& parts);

  // Finds the attempts that an earlier agent left. Folders that name no attempt are removed.
  absl::Status Recover();

  void Poll();
  int64_t NextWakeNanos() const;
  // Takes no more attempts and tells the scheduler so, asks every trainer for a checkpoint, and hands them back.
  void Drain();

  // Polls and waits until `stop` is set (whoever sets it wakes the mailbox), or the scheduler refuses this worker: its
  // error then. While draining it also ends, OK, once there is no attempt left and the scheduler knows (or cannot be
  // reached), or the grace time is over.
  absl::Status Run(const std::atomic<bool>& stop, const std::atomic<bool>& drain);

  // Nothing keeps a draining agent: see Run.
  bool drained() const { return draining_ && attempts_.empty() && (leaving_told_ || session_.id().empty()); }
  size_t attempts() const { return attempts_.size(); }
  const std::string& session_id() const { return session_.id(); }

 private:
  void FillOpen(v1::OpenSessionRequest* request) override;
  void OnOpened(const v1::OpenSessionResponse& response) override;
  void FillSync(v1::SyncRequest* request) override;
  void OnSynced(int64_t sync_number, const v1::SyncResponse& response, int64_t sent_boot_nanos) override;
  void Log(const std::string& line) override { env_.log(line); }

  void StartAttempt(const v1::StartAttempt& start, int64_t lease_deadline_nanos);
  std::shared_ptr<AttemptRunner> Find(const v1::AttemptKey& key) const;
  std::string DirOf(const v1::AttemptKey& key) const;
  std::vector<int> FreeProcessors(int threads) const;
  void DropGone();
  absl::StatusOr<LocalModel> ModelOf(const std::string& digest);
  void LookForModels();
  void OnLooked(const absl::StatusOr<std::optional<ModelOffer>>& found);

  AgentOptions options_;
  AttemptEnv env_;
  TaskRunner* const looks_;
  // Looks hold it weakly, so that one that comes after us finds nobody.
  std::shared_ptr<AgentCore*> self_;
  bool looking_ = false;
  bool withdrawn_ = false;  // a model was taken from the offer since it was read
  int64_t next_look_nanos_ = 0;
  std::string look_failed_;  // what was said of the last look
  Session session_;
  bool draining_ = false;
  int64_t drain_until_nanos_ = 0;
  int64_t leaving_sync_number_ = 0;  // the first Sync of the session that says so; 0 = none yet
  bool leaving_told_ = false;        // and it was answered
  std::map<std::string, std::shared_ptr<AttemptRunner>> attempts_;  // by folder name
  // The last of those that were among them, as many as a Sync may name: see StartAttempt.
  std::set<std::string> put_away_;
  std::deque<std::string> put_away_order_;
  // What each Sync told, until it is answered.
  std::map<int64_t, std::map<std::string, ReportMark>> marks_;
};

}  // namespace longhaul::agent
