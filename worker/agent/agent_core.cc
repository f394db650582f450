#include "worker/agent/agent_core.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/process.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "model/memory_plan.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/formats/model_source.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kLongestWaitMs = 1'000;
constexpr const char* kAttemptsDir = "/attempts";
constexpr int64_t kRequestSlackBytes = 256 << 10;

// What attempts may tell in a request that has this already, so that the scheduler takes the message: every attempt is
// listed, and the last ones may have to wait for the next Sync with their news.
int64_t RoomAfter(const google::protobuf::MessageLite& request) {
  return limits::kMaxGrpcMessageBytes - static_cast<int64_t>(request.ByteSizeLong()) - kRequestSlackBytes;
}

std::string FolderName(const v1::AttemptKey& key) {
  return key.job_id() + "." + std::to_string(key.attempt()) + "." + std::to_string(key.lease_epoch());
}

}  // namespace

AgentCore::AgentCore(AgentOptions options, const AgentParts& parts)
    : options_(std::move(options)),
      looks_(parts.looks),
      self_(std::make_shared<AgentCore*>(this)),
      next_look_nanos_(parts.clock->BootNanos() + options_.model_look_ms * kNanosPerMs),
      session_(Crc32c(options_.worker_id), this, parts.client, parts.clock, parts.mailbox) {
  env_.clock = parts.clock;
  env_.client = parts.client;
  env_.mailbox = parts.mailbox;
  env_.fetches = parts.fetches;
  env_.uploads = parts.uploads;
  env_.logs = parts.logs;
  env_.log = parts.log;
  env_.oom_kills = options_.oom_kills;
  env_.trainer_path = options_.trainer_path;
  env_.cache_dir = options_.state_dir + "/cache";
  env_.free_processors = [this](int threads) { return FreeProcessors(threads); };
  env_.session_id = [this] { return session_.id(); };
  env_.on_news = [this] { session_.MarkNews(); };
  env_.model = [this](const std::string& digest) { return ModelOf(digest); };
}

// A model whose files are others than those that the digest was taken of is offered no more, from now on. What was put
// beside them, a README or an adapter, is not looked at. A few stats: nothing is opened on this thread; where one more
// file makes the folder another model, its trainer refuses it, and the next look finds it.
absl::StatusOr<LocalModel> AgentCore::ModelOf(const std::string& digest) {
  const auto found = options_.models.find(digest);
  if (found == options_.models.end()) {
    return MakeError(absl::StatusCode::kUnavailable, "MODEL_UNKNOWN", "this worker has no model of digest " + digest);
  }
  const LocalModel model = found->second;
  if (model.files.empty()) return model;
  if (formats::ModelSource::FingerprintOf(model.files).value_or("") == model.fingerprint) return model;
  withdrawn_ = true;
  options_.models.erase(found);
  auto* offered = options_.inventory.mutable_models();
  offered->erase(
      std::remove_if(offered->begin(), offered->end(), [&](const v1::Model& one) { return one.digest() == digest; }),
      offered->end());
  session_.Reopen("the files of " + model.path + " have changed");
  return MakeError(absl::StatusCode::kUnavailable, "MODEL_CHANGED",
                   "the files of " + model.path + " have changed since their digest was taken");
}

void AgentCore::LookForModels() {
  if (options_.look_for_models == nullptr || looking_ || draining_) return;
  if (env_.clock->BootNanos() < next_look_nanos_) return;
  looking_ = true;
  looks_->Run([weak = std::weak_ptr<AgentCore*>(self_), mailbox = env_.mailbox, look = options_.look_for_models,
               anyway = withdrawn_] {
    mailbox->Post([weak, found = look(anyway)] {
      if (const auto self = weak.lock()) (*self)->OnLooked(found);
    });
  });
}

void AgentCore::OnLooked(const absl::StatusOr<std::optional<ModelOffer>>& found) {
  looking_ = false;
  next_look_nanos_ = env_.clock->BootNanos() + options_.model_look_ms * kNanosPerMs;
  const std::string failed = found.ok() ? "" : std::string(found.status().message());
  if (!failed.empty() && failed != look_failed_) env_.log("the models stay as they were: " + failed);
  look_failed_ = failed;
  if (!found.ok() || !found->has_value()) return;
  options_.models = ByDigest(**found);
  v1::WorkerInventory inventory = options_.inventory;
  inventory.clear_models();
  std::string names;
  for (const OfferedModel& model : **found) {
    *inventory.add_models() = model.proto;
    names += (names.empty() ? "" : ", ") + model.proto.name();
  }
  const bool same = inventory.SerializeAsString() == options_.inventory.SerializeAsString();
  options_.inventory = std::move(inventory);
  withdrawn_ = false;
  if (same) return;  // something lies beside them
  session_.Reopen("the models have changed: " + (names.empty() ? "there are none" : names));
}

std::vector<int> AgentCore::FreeProcessors(int threads) const {
  std::vector<int> free = ProcessorsOf(0);
  for (const auto& [name, attempt] : attempts_) {
    for (int bound : attempt->BoundProcessors()) std::erase(free, bound);
  }
  if (static_cast<size_t>(threads) > free.size()) return {};
  free.resize(static_cast<size_t>(threads));
  return free;
}

absl::Status AgentCore::Recover() {
  const std::string root = options_.state_dir + kAttemptsDir;
  LH_RETURN_IF_ERROR(CreateDirs(root));
  LH_RETURN_IF_ERROR(CreateDirs(env_.cache_dir));
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(root));
  for (const std::string& name : names) {
    const std::string dir = JoinPath(root, name);
    auto runner = AttemptRunner::Recover(&env_, dir);
    // No trainer was ever started without a spec, and where one has ended, the spec went first: nothing runs in a
    // folder that lacks it.
    if (absl::IsNotFound(runner.status())) {
      env_.log("removing " + dir + ", in which no attempt has begun, or one has ended");
      LH_RETURN_IF_ERROR(RemoveTree(dir));
      continue;
    }
    // One that is there and cannot be read may be of a newer build, and its trainer at work: a person has to look.
    if (!runner.ok()) {
      return Annotate(runner.status(), "attempt folder " + dir + " cannot be read (move it away to go on without it)");
    }
    attempts_[name] = *std::move(runner);
  }
  return absl::OkStatus();
}

void AgentCore::Poll() {
  // A copy: nothing that an attempt does may invalidate the walk.
  std::vector<std::shared_ptr<AttemptRunner>> all;
  for (const auto& [name, runner] : attempts_) all.push_back(runner);
  for (const auto& runner : all) runner->Poll();
  DropGone();
  LookForModels();
  session_.Poll();
}

int64_t AgentCore::NextWakeNanos() const {
  int64_t next = session_.NextWakeNanos();
  if (options_.look_for_models != nullptr && !looking_ && !draining_) next = std::min(next, next_look_nanos_);
  for (const auto& [name, runner] : attempts_) next = std::min(next, runner->NextWakeNanos());
  return next;
}

void AgentCore::Drain() {
  if (draining_) return;
  draining_ = true;
  drain_until_nanos_ = env_.clock->BootNanos() + options_.drain_grace_ms * kNanosPerMs;
  env_.log("draining: " + std::to_string(attempts_.size()) + " attempts are asked for a checkpoint");
  for (const auto& [name, runner] : attempts_) runner->Stop(v1::STOP_MODE_CHECKPOINT);
  session_.MarkNews();  // so that nothing new is placed here meanwhile
}

absl::Status AgentCore::Run(const std::atomic<bool>& stop, const std::atomic<bool>& drain) {
  while (!stop.load()) {
    env_.mailbox->Drain();
    if (drain.load()) Drain();
    Poll();
    if (!session_.fatal().ok()) return session_.fatal();
    if (drained()) return absl::OkStatus();
    const int64_t now = env_.clock->BootNanos();
    if (draining_ && now >= drain_until_nanos_) {
      env_.log("the grace time is over; " + std::to_string(attempts_.size()) + " trainers go on without an agent");
      return absl::OkStatus();
    }
    const int64_t next = NextWakeNanos();
    const int64_t wait_ms = next <= now ? 0 : std::min(kLongestWaitMs, (next - now + kNanosPerMs - 1) / kNanosPerMs);
    env_.mailbox->Wait(wait_ms);
  }
  return absl::OkStatus();
}

void AgentCore::FillOpen(v1::OpenSessionRequest* request) {
  marks_.clear();
  request->set_worker_id(options_.worker_id);
  request->set_protocol_version(kProtocolVersion);
  request->set_build(options_.build);
  request->set_plan_version(kPlanVersion);
  *request->mutable_inventory() = options_.inventory;
  request->set_leaving(draining_);
  int64_t room_bytes = RoomAfter(*request);
  for (const auto& [name, runner] : attempts_) {
    // What the session's Syncs will tell in full; here it matters which attempts there are.
    ReportMark mark;
    *request->add_attempts() = runner->Status(&room_bytes, &mark);
  }
}

void AgentCore::OnOpened(const v1::OpenSessionResponse& response) {
  leaving_sync_number_ =
      0;  // numbers begin anew; a Sync repeats what this session's opening may have been too early for
  for (const v1::AttemptKey& key : response.fenced()) {
    if (const auto runner = Find(key)) runner->Stop(v1::STOP_MODE_FENCED);
  }
  DropGone();
}

void AgentCore::FillSync(v1::SyncRequest* request) {
  std::map<std::string, ReportMark>& marks = marks_[request->sync_number()];
  marks.clear();
  request->set_leaving(draining_);
  if (draining_ && leaving_sync_number_ == 0) leaving_sync_number_ = request->sync_number();
  int64_t room_bytes = RoomAfter(*request);
  for (const auto& [name, runner] : attempts_) *request->add_attempts() = runner->Status(&room_bytes, &marks[name]);
  request->set_host_bytes_available(std::min(options_.inventory.host_bytes_total(), HostMemAvailableBytes()));
  if (const absl::StatusOr<int64_t> free = DiskFreeBytes(options_.state_dir); free.ok()) {
    request->set_disk_bytes_available(*free);
  }
}

void AgentCore::OnSynced(int64_t sync_number, const v1::SyncResponse& response, int64_t sent_boot_nanos) {
  const auto told = marks_.find(sync_number);
  if (told != marks_.end()) {
    for (const auto& [name, mark] : told->second) {
      const auto runner = attempts_.find(name);
      if (runner != attempts_.end()) runner->second->Acknowledge(mark);
    }
    marks_.erase(told);
  }
  leaving_told_ = leaving_told_ || (leaving_sync_number_ != 0 && sync_number >= leaving_sync_number_);
  // Counted from when we asked: the scheduler counts from when it answered, which is later.
  const int64_t deadline = sent_boot_nanos + response.lease_ms() * kNanosPerMs;
  for (const v1::AttemptKey& key : response.leases()) {
    if (const auto runner = Find(key)) runner->ExtendLease(deadline);
  }
  for (const v1::WorkerCommand& command : response.commands()) {
    if (command.has_start()) {
      StartAttempt(command.start(), deadline);
    } else if (command.has_stop()) {
      if (const auto runner = Find(command.stop().key())) runner->Stop(command.stop().mode());
    }
  }
  for (const v1::AttemptKey& key : response.acknowledged()) {
    if (const auto runner = Find(key)) runner->AcknowledgeEnd();
  }
  DropGone();
}

void AgentCore::StartAttempt(const v1::StartAttempt& start, int64_t lease_deadline_nanos) {
  const v1::AttemptKey& key = start.key();
  const std::string name = FolderName(key);
  // A repeated answer, or one that another has overtaken on its way: what ended here does not begin again.
  if (attempts_.count(name) > 0 || put_away_.count(name) > 0) return;
  if (const absl::Status valid = attempt::ValidateFileName(name); !valid.ok()) {
    env_.log("not starting an attempt: " + std::string(valid.message()));
    return;
  }
  if (draining_) {
    attempts_[name] =
        AttemptRunner::Refuse(&env_, DirOf(key), key, v1::TRAINER_EXIT_CHECKPOINTED, "the worker is draining");
    return;
  }
  attempts_[name] = AttemptRunner::Start(&env_, DirOf(key), start, lease_deadline_nanos);
}

std::shared_ptr<AttemptRunner> AgentCore::Find(const v1::AttemptKey& key) const {
  const auto found = attempts_.find(FolderName(key));
  return found == attempts_.end() ? nullptr : found->second;
}

std::string AgentCore::DirOf(const v1::AttemptKey& key) const {
  return JoinPath(options_.state_dir + kAttemptsDir, FolderName(key));
}

void AgentCore::DropGone() {
  for (auto it = attempts_.begin(); it != attempts_.end();) {
    if (!it->second->gone()) {
      ++it;
      continue;
    }
    put_away_.insert(it->first);
    put_away_order_.push_back(it->first);
    it = attempts_.erase(it);
  }
  for (; put_away_order_.size() > size_t{limits::kMaxReportsPerSync}; put_away_order_.pop_front()) {
    put_away_.erase(put_away_order_.front());
  }
}

}  // namespace longhaul::agent
