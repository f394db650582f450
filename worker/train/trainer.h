// One training run on one device: load, resume, evaluate, update, checkpoint, until the last update or a stop.
//
// The trainer allocates exactly its plan, nothing in a step after the first. It knows no clock, file name or socket
// that it was not handed: what happens goes to a TrainerObserver, what should happen comes from a TrainerControl. Not
// thread-safe; Run blocks. The control and the observer are called on Run's thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/limits.h"
#include "worker/train/adapter.h"
#include "worker/train/base_cache.h"
#include "worker/train/batch_source.h"
#include "worker/train/checkpoint.h"
#include "worker/train/decoder.h"
#include "worker/train/engine_ops.h"
#include "worker/train/evaluate.h"
#include "worker/train/export.h"
#include "worker/train/hyper.h"
#include "worker/train/loss.h"
#include "worker/train/memory.h"
#include "worker/train/optimizer.h"
#include "worker/train/weights.h"

namespace longhaul::train {

struct TrainStarted {
  int64_t arena_bytes = 0;         // of host memory; pinned on CUDA
  int64_t device_arena_bytes = 0;  // 0 on a CPU device
  int64_t total_steps = 0;
  int64_t first_step = 0;  // 0, or where the resume begins
  double load_seconds = 0;
  std::string computes_with;  // EngineOps::Describe: kernels and versions, what stands in for what and why
};

struct TrainProgress {
  int64_t step = 0;  // updates done, this one included
  int64_t total_steps = 0;
  double epoch = 0;
  double loss = 0;  // mean over the update's trained targets
  double learning_rate = 0;
  double grad_norm = 0;  // before clipping
  double tokens_per_second = 0;
  double step_seconds = 0;
  double forward_seconds = 0;  // parts of step_seconds; on CUDA 0: a step is queued whole
  double loss_seconds = 0;
  double backward_seconds = 0;
  double update_seconds = 0;
  int64_t trained_tokens = 0;  // of the job so far
  int64_t skipped_updates = 0;
  int64_t device_bytes_used = 0;  // of all processes on the device; 0 on a CPU device
};

struct CheckpointInfo {
  std::string folder;              // complete and durable
  std::vector<std::string> files;  // in it
  int64_t step = 0;
  bool final = false;  // training is over; only the artifact is missing
  std::optional<double> eval_loss;
  std::string plan_signature;
  std::string made_with;  // CheckpointIdentity's
};

class TrainerObserver {
 public:
  virtual ~TrainerObserver() = default;
  virtual void OnStarted(const TrainStarted&) {}
  virtual void OnProgress(const TrainProgress&) {}
  virtual void OnEvaluated(int64_t /*step*/, const EvalResult&) {}
  // An error ends the run with it: a checkpoint that nobody could be told of is no checkpoint.
  virtual absl::Status OnCheckpoint(const CheckpointInfo&) { return absl::OkStatus(); }
  virtual void OnWarning(const std::string&) {}
  virtual void OnHold(bool /*held*/) {}
};

enum class Control {
  kContinue,
  kHold,                // checkpoint, then wait at the step boundary
  kStopWithCheckpoint,  // checkpoint at the step boundary and return; an evaluation is left to the resume
  kCancel,              // return within a layer
};

class TrainerControl {
 public:
  virtual ~TrainerControl() = default;
  // Called at every step boundary and between layers: cheap.
  virtual Control Poll() = 0;
  // Blocks while Poll() says kHold; returns as soon as it may say something else.
  virtual void WaitWhileHeld() = 0;
};

// Never stops.
class RunToEnd final : public TrainerControl {
 public:
  Control Poll() override { return Control::kContinue; }
  void WaitWhileHeld() override {}
};

enum class Outcome { kFinished, kStopped, kCancelled };

struct TrainerOptions {
  MemoryPlan plan;
  Hyper hyper;
  std::string checkpoint_root;    // checkpoints are its folders step-N; "" = none are written
  std::string resume_from;        // a checkpoint's folder; "" = from the start
  std::string data_signature;     // digest of model, data and everything that decides the batches
  std::string base_cache_folder;  // BaseCache's; "" = none
  std::string model_digest;       // SHA-256 of the model's content; "" = unknown, and nothing is cached
  bool pin_threads = false;
  int cuda_device = 0;  // of a CUDA plan
  int checkpoints_kept = limits::kCheckpointsKept;
};

class Trainer {
 public:
  // Allocates, loads the base, initialises the adapter or resumes. `weights` is not used after Create. `eval` may be
  // null. The other pointers outlive the trainer. Errors: INVALID_ARGUMENT (hyperparameters, batches that exceed the
  // plan, a broken checkpoint); FAILED_PRECONDITION PLAN_MISMATCH (another CPU) or RESUME_NOT_IDENTICAL (the
  // checkpoint's plan has other bits and allow_nonidentical_resume is off); RESOURCE_EXHAUSTED HOST_OOM, DEVICE_OOM;
  // UNAVAILABLE DEVICE_MEMORY_TAKEN; of a CUDA plan also Exec::CreateCuda's and CudaEngine::Create's. A CUDA call that
  // fails throws CudaError, here and in Run.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const TrainerOptions& options, const WeightSource& weights,
                                                         BatchSource* train, BatchSource* eval,
                                                         TrainerObserver* observer, TrainerControl* control,
                                                         const Clock* clock);

  // Errors: NON_FINITE_LOSS (FAILED_PRECONDITION) naming step and sample; DISK_FULL and others of the file system.
  absl::StatusOr<Outcome> Run();
  // The number of the last update that Run began. Progress of the one before may not have been reported yet: on CUDA
  // an update is queued before the last one's numbers are read.
  int64_t last_begun() const { return last_begun_; }

  const TrainerState& state() const { return state_; }
  const MemoryPlan& plan() const { return memory_->plan(); }
  const Adapter& adapter() const { return *adapter_; }
  const EngineMemory& memory() const { return *memory_; }
  // On a CUDA plan a CudaOps; for benchmarks, which look into it.
  EngineOps& ops() const { return *ops_; }
  const std::string& plan_signature() const { return identity_.plan_signature; }
  absl::Status Export(const std::string& folder, const ExportFacts& facts) const {
    return ExportAdapter(folder, plan(), options_.hyper, *adapter_, facts);
  }

 private:
  // An update from when it is begun until its numbers are read.
  struct StepInFlight {
    int64_t number = 0;  // of the updates before it
    int64_t slot = 0;    // of EngineOps, loss and updates
    Window window;
    int64_t begin_nanos = 0;
    bool follows = false;  // it was queued while the one before was in flight
    double learning_rate = 0;
    double loss = 0;
    int64_t tokens = 0;
    std::string non_finite;                  // what the first micro-batch with a non-finite loss was made of
    int64_t first_non_finite_gradient = -1;  // the first micro-batch after which the gradient was; -1: none, or unknown
    TrainProgress timings;
  };

  Trainer(const TrainerOptions& options, BatchSource* train, BatchSource* eval, TrainerObserver* observer,
          TrainerControl* control, const Clock* clock)
      : options_(options), train_(train), eval_(eval), observer_(observer), control_(control), clock_(clock) {}

  bool reads_late() const { return options_.plan.device == DeviceKind::kCuda; }
  absl::Status CheckBatches(const BatchSource& batches, const char* name) const;
  absl::Status Load(const WeightSource& weights);
  absl::Status Resume();
  // The window of update `number`, which becomes the source's.
  Window WindowOf(int64_t number) const;
  bool Accumulate(StepInFlight* step);  // false: cancelled
  // Forward, loss and backward; false: cancelled.
  bool RunMicroBatch(const TokenBatch& batch, double grad_scale, TrainProgress* timings);
  // What the window's losses were. REQUIRES: their numbers are there.
  void CollectLosses(StepInFlight* step) const;
  std::string DescribeMicroBatch(const StepInFlight& step, int64_t index) const;
  static double GradScale(const Window& window) {
    return window.targets > 0 ? 1.0 / static_cast<double>(window.targets) : 0;
  }
  // Begins an update and settles the one before; also this one, where nothing is read late or somebody looks at the
  // state after it. False: cancelled.
  absl::StatusOr<bool> Step();
  bool QueueStep(StepInFlight* step);  // false: cancelled
  // Reads the numbers of the update in flight, if there is one: from here on the state is exact.
  absl::Status Settle();
  void Report(const StepInFlight& step, double grad_norm);
  std::string WhyNotFinite(const UpdateResult& update, const StepInFlight& step) const;
  absl::Status CountSkip(const UpdateResult& update, const StepInFlight& step);
  // An evaluation, a checkpoint or the end comes after update `done`.
  bool IsLookedAt(int64_t done) const;
  absl::StatusOr<Outcome> RunSteps();
  bool EvaluateNow();  // false: told to stop, hold or cancel
  // Evaluates to the end unless AtBoundary ends the run. A checkpoint written in between says that it is to be done.
  absl::StatusOr<std::optional<Outcome>> EvaluateAtBoundary();
  absl::Status Checkpoint(bool final);
  void RemoveOldCheckpoints();
  // Acts on hold, stop and cancel at a step boundary; nullopt = go on.
  absl::StatusOr<std::optional<Outcome>> AtBoundary();
  double SecondsSince(int64_t boot_nanos) const { return static_cast<double>(clock_->BootNanos() - boot_nanos) * 1e-9; }

  TrainerOptions options_;
  BatchSource* train_;
  BatchSource* eval_;
  TrainerObserver* observer_;
  TrainerControl* control_;
  const Clock* clock_;
  std::unique_ptr<kernels::Exec> exec_;
  std::unique_ptr<EngineMemory> memory_;
  std::unique_ptr<BaseCache> base_cache_;
  ModelWeights weights_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<EngineOps> ops_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<CutCrossEntropy> loss_;
  KeepGoing keep_going_;
  KeepGoing keep_evaluating_;
  std::unique_ptr<AdapterUpdates> updates_;
  TrainerState state_;  // exact where nothing is in flight; else as before that update
  std::optional<StepInFlight> in_flight_;
  int64_t last_begun_ = 0;
  CheckpointIdentity identity_;
  int64_t checkpoint_step_ = -1;  // of the last one written here, or resumed from
};

}  // namespace longhaul::train
