#include "worker/bench_train.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/process.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/device_activity.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/exec.h"
#include "model/cost_model.h"
#include "model/plan_layout.h"
#include "nlohmann/json.hpp"
#include "worker/bench_batches.h"
#include "worker/bench_device.h"
#include "worker/bench_shapes.h"
#include "worker/train/cuda_ops.h"
#include "worker/train/trainer.h"

namespace longhaul {
namespace {

// Updates after the measured ones whose kernels are recorded.
constexpr int64_t kRecordedSteps = 16;

// On a GPU the last update is timed by its parts, and where that was asked for, kernels of kRecordedSteps updates
// before it are recorded. They are no steps of the figures then: recording and timing themselves take time.
class Recorder final : public train::TrainerObserver {
 public:
  void OnStarted(const train::TrainStarted& started) override { load_seconds = started.load_seconds; }
  void OnProgress(const train::TrainProgress& progress) override {
    rss_bytes = std::max(rss_bytes, ProcessRssBytes(getpid()));
    if (profiles && progress.step == progress.total_steps) {
      parts = gpu->EndProfile();
      profiled_seconds = progress.step_seconds;
      return;
    }
    if (profiles && progress.step >= progress.total_steps - recorded_steps) return;
    steps.push_back(progress);
    if (gpu == nullptr) return;
    const int64_t number = progress.step - 1;
    queued_seconds.push_back(gpu->SecondsBetween(train::CudaOps::StepBegun(number), train::CudaOps::StepEnded(number)));
    if (!profiles) used_device_bytes = progress.device_bytes_used;
  }
  // The update before this one is queued, but not reported yet.
  void OnWindow(int64_t update, int64_t total_steps) {
    if (!profiles) return;
    if (update + 1 == total_steps - recorded_steps) {
      // Before what records and times, which takes device memory, too.
      used_device_bytes = kernels::CudaOwnBytes(*exec);
      if (recorded_steps > 0) {
        exec->Synchronize();
        activity = kernels::DeviceActivity::Begin();
      }
    }
    if (update + 1 != total_steps) return;
    if (recorded_steps > 0) {
      exec->Synchronize();
      kernels_run = activity.ok() ? (*activity)->End() : activity.status();
    }
    gpu->BeginProfile();
  }
  // The median over the steps but the first, which loads kernels, where there are others: the share of the time from a
  // step's first work on the device to its last. What is missing is the host's; gaps between kernels are not.
  double QueuedShare() const {
    std::vector<double> shares;
    for (size_t i = steps.size() > 1 ? 1 : 0; i < steps.size(); ++i) {
      shares.push_back(queued_seconds[i] / steps[i].step_seconds);
    }
    std::sort(shares.begin(), shares.end());
    return shares[shares.size() / 2];
  }
  // Seconds that the device has kernels, copies or fills running in a step.
  absl::StatusOr<double> BusySeconds() const {
    if (!kernels_run.ok()) return kernels_run.status();
    return kernels_run->seconds / static_cast<double>(kRecordedSteps);
  }

  kernels::CudaEngine* gpu = nullptr;
  const kernels::Exec* exec = nullptr;
  bool profiles = false;
  int64_t recorded_steps = 0;  // kRecordedSteps, or none
  int64_t used_device_bytes = 0;
  std::vector<double> queued_seconds;  // of each step, from its first to its last work on the device
  absl::StatusOr<std::unique_ptr<kernels::DeviceActivity>> activity = absl::UnknownError("nothing was recorded");
  absl::StatusOr<kernels::DeviceActivity::Sum> kernels_run = absl::UnavailableError("--record-kernels was not given");
  std::vector<kernels::CudaEngine::Part> parts;
  double profiled_seconds = 0;
  double load_seconds = 0;
  int64_t rss_bytes = 0;
  std::vector<train::TrainProgress> steps;
};

absl::StatusOr<DeviceFacts> CpuFacts(const BenchTrainOptions& options, int threads) {
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  DeviceFacts facts;
  facts.device_class = "cpu-" + cpu.isa;
  facts.isa = cpu.isa;
  facts.has_bf16 = cpu.has_bf16;
  facts.cpu_threads = threads;
  facts.host_bytes = options.host_bytes > 0 ? options.host_bytes : HostMemAvailableBytes();
  facts.gemm_flops =
      kernels::MeasureGemmFlops(threads, cpu.has_bf16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32);
  return facts;
}

absl::StatusOr<MemoryPlan> PlanOf(const BenchTrainOptions& options, const ModelShape& shape, int64_t longest_document,
                                  int threads) {
  const bool gpu = options.device == "cuda";
  LH_ASSIGN_OR_RETURN(const DeviceFacts facts, gpu ? BenchGpuFacts(options.device_bytes, options.host_bytes, threads)
                                                   : CpuFacts(options, threads));
  TrainShape train;
  const bool bf16 = options.compute.empty() ? gpu || facts.has_bf16 : options.compute == "bf16";
  train.compute = options.compute == "fp8" ? ComputeType::kFP8 : bf16 ? ComputeType::kBF16 : ComputeType::kF32;
  const bool nf4 = options.base.empty() ? gpu : options.base == "nf4";
  train.base = nf4 ? BaseWeights::kNf4 : BaseWeights::kAsStored;
  train.deterministic = options.deterministic;
  train.lora_rank = options.rank;
  train.lora_dropout = options.dropout;
  train.batch_size = options.batch;
  train.sequence_length = options.tokens;
  train.longest_document = longest_document;
  PlanBudget budget;
  budget.share = options.share == "minimum"    ? PlanShare::kMinimum
                 : options.share == "balanced" ? PlanShare::kBalanced
                                               : PlanShare::kWhole;
  LH_ASSIGN_OR_RETURN(MemoryPlan plan, MakePlan(shape, train, facts, budget));
  if (gpu && options.host_checkpoints) {
    plan.choices.host_checkpoints = true;
    LayOutPlan(&plan);
  }
  return plan;
}

// What the GEMM library alone would need for the step's frozen products, each at its own rate, over all rows at once.
double LibrarySeconds(const MemoryPlan& plan, double trained) {
  const ModelShape& s = plan.shape;
  const auto type = plan.train.compute == ComputeType::kBF16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32;
  const auto seconds = [&](int64_t rows, int64_t in, int64_t out) {
    const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
    return flops / kernels::MeasureLibraryGemmFlops(plan.choices.cpu_threads, type, {rows, in, out});
  };
  const int64_t n = plan.train.tokens();
  double layer = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    const int64_t out = FusedOut(s, static_cast<FusedLinear>(i));
    const int64_t in = FusedIn(s, static_cast<FusedLinear>(i));
    layer += seconds(n, in, out) + seconds(n, out, in);
  }
  const int64_t targets = std::max<int64_t>(1, static_cast<int64_t>(trained * static_cast<double>(n)));
  return static_cast<double>(s.layers) * layer + seconds(targets, s.hidden, s.vocab) +
         seconds(targets, s.vocab, s.hidden);
}

// The first update touches every page and builds every primitive; the others, where there are, fastest first.
std::vector<train::TrainProgress> MeasuredSteps(const Recorder& recorder) {
  const int unmeasured = recorder.steps.size() > 1 ? 1 : 0;
  std::vector<train::TrainProgress> steps(recorder.steps.begin() + unmeasured, recorder.steps.end());
  std::sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return a.step_seconds < b.step_seconds; });
  return steps;
}

nlohmann::json GpuReport(const MemoryPlan& plan, const train::Trainer& trainer, const Recorder& recorder,
                         double trained) {
  const std::vector<train::TrainProgress> steps = MeasuredSteps(recorder);
  const train::TrainProgress& median = steps[steps.size() / 2];
  const StepFlops flops = CountFlops(plan, trained);
  nlohmann::json parts = nlohmann::json::object();
  double timed = 0;
  for (const kernels::CudaEngine::Part& part : recorder.parts) {
    parts[part.name] = {{"seconds", part.seconds}, {"calls", part.calls}};
    if (part.name != "copies beside") timed += part.seconds;
  }
  const int64_t used = recorder.used_device_bytes;
  const absl::StatusOr<double> busy = recorder.BusySeconds();
  const train::GraphCache::Counts graphs = static_cast<const train::CudaOps&>(trainer.ops()).graphs().counts();
  return {{"tokens_per_s", median.tokens_per_second},
          {"best_tokens_per_s", steps.front().tokens_per_second},
          {"step_seconds", median.step_seconds},
          {"gpu_busy", busy.ok() ? nlohmann::json(*busy / median.step_seconds) : nlohmann::json()},
          {"gpu_busy_recorded", busy.ok()
                                    ? nlohmann::json(recorder.kernels_run->seconds / recorder.kernels_run->all_seconds)
                                    : nlohmann::json()},
          {"gpu_busy_missing", busy.ok() ? "" : std::string(busy.status().message())},
          {"gpu_kernels_a_step", busy.ok() ? recorder.kernels_run->records / kRecordedSteps : 0},
          {"gpu_queued", recorder.QueuedShare()},
          {"graphs", {{"run", graphs.run}, {"captured", graphs.captured}, {"replayed", graphs.replayed}}},
          {"first_step_seconds", recorder.steps.front().step_seconds},
          {"load_seconds", recorder.load_seconds},
          {"loss", median.loss},
          {"profiled_step_seconds", recorder.profiled_seconds},
          {"profiled_parts", std::move(parts)},
          {"profiled_other_seconds", recorder.profiled_seconds - timed},
          {"idle_seconds", median.step_seconds * (1 - recorder.QueuedShare())},
          {"useful_flops_per_s", (flops.total() - flops.recompute) / median.step_seconds},
          {"flops_per_s", flops.total() / median.step_seconds},
          {"device_bytes_predicted", plan.device_bytes_total},
          {"device_arena_bytes", plan.device_arena_bytes},
          {"device_bytes_measured", used},
          {"device_bytes_outside_arena", used - plan.device_arena_bytes},
          {"host_bytes_predicted", plan.host_bytes_total},
          {"pinned_bytes", plan.arena_bytes},
          {"graph_nodes", static_cast<const train::CudaOps&>(trainer.ops()).graphs().nodes()},
          {"rss_bytes", recorder.rss_bytes},
          {"plan", DescribeChoices(plan)},
          {"device", trainer.ops().Describe()}};
}

// What the step's work would take at the rate of this device's bf16 products, as the plan does it (floor) and without
// what it does again, and what the plan predicts by all rates that a worker's probe measures; measured now that the
// trainer's memory is free. FP8 products may pass the floor.
absl::Status AddFloor(const MemoryPlan& plan, double trained, nlohmann::json* report) {
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Exec> exec, kernels::Exec::CreateCuda(0));
  LH_ASSIGN_OR_RETURN(const kernels::CudaRates rates, kernels::MeasureCudaRates(*exec));
  const StepFlops flops = CountFlops(plan, trained);
  const double floor = flops.total() / rates.gemm_flops, step = (*report)["step_seconds"].get<double>();
  DeviceFacts facts;
  facts.kind = DeviceKind::kCuda;
  facts.gemm_flops = rates.gemm_flops;
  facts.copy_bytes_per_second = rates.copy_bytes_per_second;
  facts.memory_bytes_per_second = rates.memory_bytes_per_second;
  (*report)["predicted_step_seconds"] = PredictStepSeconds(plan, facts);
  (*report)["gemm_flops_per_s"] = rates.gemm_flops;
  (*report)["copy_bytes_per_s"] = rates.copy_bytes_per_second;
  (*report)["memory_bytes_per_s"] = rates.memory_bytes_per_second;
  (*report)["floor_seconds"] = floor;
  (*report)["floor_without_recompute_seconds"] = (flops.total() - flops.recompute) / rates.gemm_flops;
  (*report)["percent_of_floor"] = 100 * floor / step;
  return absl::OkStatus();
}

nlohmann::json Report(const MemoryPlan& plan, const train::Trainer& trainer, const Recorder& recorder, double trained) {
  const std::vector<train::TrainProgress> steps = MeasuredSteps(recorder);
  const train::TrainProgress& median = steps[steps.size() / 2];
  const StepFlops flops = CountFlops(plan, trained);
  const double useful = flops.total() - flops.recompute;
  const double library_flops = (flops.linear + flops.head) / LibrarySeconds(plan, trained);
  return {{"tokens_per_s", median.tokens_per_second},
          {"best_tokens_per_s", steps.front().tokens_per_second},
          {"step_seconds", median.step_seconds},
          {"forward_seconds", median.forward_seconds},
          {"loss_seconds", median.loss_seconds},
          {"backward_seconds", median.backward_seconds},
          {"update_seconds", median.update_seconds},
          {"first_step_seconds", recorder.steps.front().step_seconds},
          {"load_seconds", recorder.load_seconds},
          {"predicted_step_seconds", plan.step_seconds},
          {"rss_bytes", recorder.rss_bytes},
          {"plan_bytes", plan.host_bytes_total},
          {"arena_bytes", plan.arena_bytes},
          {"arena_high_water_bytes", trainer.memory().arena().high_water_bytes()},
          {"plan", DescribeChoices(plan)},
          {"useful_flops_per_s", useful / median.step_seconds},
          {"library_gemm_flops_per_s", library_flops},
          {"library_gemm_ratio", useful / median.step_seconds / library_flops},
          {"cpu", kernels::ProbeCpu().model_name},
          {"gemm_library", kernels::ProbeCpu().gemm_library}};
}

}  // namespace

absl::StatusOr<nlohmann::json> BenchTrain(const BenchTrainOptions& options) {
  if (options.record_kernels && (options.device != "cuda" || options.steps == 0)) {
    return InvalidField("--record-kernels",
                        "records steps of a GPU after the measured ones: --device cuda, and --steps 1 or more");
  }
  std::optional<formats::ModelSource> source;
  std::unique_ptr<train::WeightSource> weights;
  ModelShape shape;
  if (!options.model.empty()) {
    LH_ASSIGN_OR_RETURN(formats::ModelSource opened, formats::ModelSource::Open(options.model));
    source.emplace(std::move(opened));
    shape = source->shape();
    weights = std::make_unique<train::ModelWeightSource>(*source);
  } else {
    LH_ASSIGN_OR_RETURN(shape, BenchShape(options.shape));
    weights = std::make_unique<train::SyntheticWeightSource>(shape, 1);
  }
  const int threads = options.threads > 0 ? options.threads : HostCpuThreads();
  const bool profiles = options.device == "cuda" && options.steps > 0;
  const int64_t recorded_steps = profiles && options.record_kernels ? kRecordedSteps : 0;
  const int64_t updates = 1 + options.steps + recorded_steps + (profiles ? 1 : 0);
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<BenchBatches> batches,
                      BenchBatches::Create({.batch = options.batch,
                                            .tokens = options.tokens,
                                            .documents = options.documents,
                                            .alpaca_like = options.alpaca_like,
                                            .trained = options.trained,
                                            .vocab = shape.vocab,
                                            .updates = updates}));
  LH_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanOf(options, shape, batches->LongestDocument(), threads));

  train::TrainerOptions trainer_options;
  trainer_options.plan = plan;
  trainer_options.pin_threads = true;
  const bool gpu = plan.device == DeviceKind::kCuda;
  trainer_options.hyper.max_steps = updates;
  trainer_options.hyper.lora_dropout = options.dropout ? 0.1 : 0;
  Recorder recorder;
  train::RunToEnd control;
  const RealClock clock;
  LH_ASSIGN_OR_RETURN(
      std::unique_ptr<train::Trainer> trainer,
      train::Trainer::Create(trainer_options, *weights, batches.get(), nullptr, &recorder, &control, &clock));
  weights.reset();
  source.reset();  // unmaps the model: its pages are not the engine's
  if (gpu) {
    recorder.gpu = &static_cast<train::CudaOps&>(trainer->ops()).engine();
    recorder.exec = &trainer->memory().exec();
    recorder.profiles = profiles;
    recorder.recorded_steps = recorded_steps;
    batches->on_window = [&](int64_t update) { recorder.OnWindow(update, updates); };
  }
  LH_ASSIGN_OR_RETURN(const train::Outcome outcome, trainer->Run());
  LH_CHECK(outcome == train::Outcome::kFinished);
  nlohmann::json report = (gpu ? GpuReport : Report)(plan, *trainer, recorder, options.trained);
  report["tokens_a_micro_batch"] = batches->MeanTokens();
  report["documents_a_micro_batch"] = batches->MeanDocuments();
  report["longest_document"] = batches->LongestDocument();
  trainer.reset();
  if (gpu) LH_RETURN_IF_ERROR(AddFloor(plan, options.trained, &report));
  return report;
}

}  // namespace longhaul
