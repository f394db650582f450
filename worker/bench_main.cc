// longhaul-bench train: how fast this machine trains a model, and whether the memory plan is the truth.
// A model folder or file, or a named shape with made-up weights; random tokens, because a benchmark on zeros flatters.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/env.h"
#include "base/format.h"
#include "base/process.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "model/cost_model.h"
#include "nlohmann/json.hpp"
#include "worker/train/trainer.h"

namespace longhaul {
namespace {

constexpr char kUsage[] =
    "usage: longhaul-bench train [options]\n"
    "  --model PATH     a GGUF file or a Hugging Face folder; without it the shape of SmolLM2-135M, made-up weights\n"
    "  --device cpu     the only device of this build\n"
    "  --tokens N       tokens a sequence (512)\n"
    "  --batch N        sequences a micro-batch (2)\n"
    "  --documents N    documents a sequence (1); more of them is how packed data looks\n"
    "  --rank N         LoRA rank (16)\n"
    "  --base NAME      as_stored (default) or nf4\n"
    "  --compute NAME   f32 or bf16; default: the fastest of this CPU\n"
    "  --share NAME     whole (default), balanced or minimum\n"
    "  --host-bytes N   what the plan may use, such as 1200MiB; default: what is available\n"
    "  --threads N      default: all\n"
    "  --steps N        measured updates (4), after one that is not\n"
    "  --trained F      share of targets that are trained, 0 to 1 (1)\n"
    "  --json           one JSON object on standard output\n";

struct Options {
  std::map<std::string, std::string> values;
  bool json = false;

  std::string Get(const std::string& key, const std::string& otherwise) const {
    const auto found = values.find(key);
    return found == values.end() ? otherwise : found->second;
  }
};

std::optional<Options> ParseOptions(int argc, char** argv) {
  static const char* const kKeys[] = {"model",   "device", "tokens",     "batch",   "documents", "rank",   "base",
                                      "compute", "share",  "host-bytes", "threads", "steps",     "trained"};
  if (argc < 2 || std::string(argv[1]) != "train") return std::nullopt;
  Options options;
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--json") {
      options.json = true;
      continue;
    }
    const bool known =
        std::any_of(std::begin(kKeys), std::end(kKeys), [&](const char* k) { return flag == std::string("--") + k; });
    if (!known || i + 1 >= argc) return std::nullopt;
    options.values[flag.substr(2)] = argv[++i];
  }
  return options;
}

// Random tokens, `documents` to a sequence of equal length, one micro-batch an update.
class RandomBatches final : public train::BatchSource {
 public:
  RandomBatches(int64_t batch, int64_t tokens, int64_t documents, double trained, int64_t vocab, int64_t updates)
      : rows_(batch * tokens), updates_(updates) {
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
      for (int64_t d = 0; d < documents; ++d) {
        const int64_t length = tokens * (d + 1) / documents - tokens * d / documents;
        for (int64_t i = 0; i < length; ++i) {
          const uint64_t at = ids_.size();
          ids_.push_back(static_cast<int32_t>(CounterBits(1, at) % static_cast<uint64_t>(vocab)));
          const bool is_target = i + 1 < length && CounterUniform(2, at) < trained;
          labels_.push_back(is_target ? static_cast<int32_t>(CounterBits(1, at + 1) % static_cast<uint64_t>(vocab))
                                      : -100);
          positions_.push_back(static_cast<int32_t>(i));
          targets_ += is_target ? 1 : 0;
        }
        longest_ = std::max(longest_, length);
        offsets_.push_back(static_cast<int64_t>(ids_.size()));
      }
    }
  }
  int64_t UpdatesPerEpoch() const override { return updates_; }
  train::Window GetWindow(int64_t, int64_t) override { return {1, targets_}; }
  train::TokenBatch Get(int64_t) override {
    train::TokenBatch batch;
    batch.rows = rows_;
    batch.ids = ids_.data();
    batch.labels = labels_.data();
    batch.positions = positions_.data();
    batch.doc_offsets = offsets_.data();
    batch.docs = static_cast<int64_t>(offsets_.size()) - 1;
    return batch;
  }
  std::string Describe() const override { return "random tokens"; }
  int64_t MostTokens() const override { return rows_; }
  int64_t LongestDocument() const override { return longest_; }

 private:
  int64_t rows_;
  int64_t updates_;
  int64_t targets_ = 0;
  int64_t longest_ = 0;
  std::vector<int32_t> ids_, labels_, positions_;
  std::vector<int64_t> offsets_{0};
};

class Recorder final : public train::TrainerObserver {
 public:
  void OnStarted(const train::TrainStarted& started) override { load_seconds = started.load_seconds; }
  void OnProgress(const train::TrainProgress& progress) override {
    steps.push_back(progress);
    rss_bytes = std::max(rss_bytes, ProcessRssBytes(getpid()));
  }
  double load_seconds = 0;
  int64_t rss_bytes = 0;
  std::vector<train::TrainProgress> steps;
};

ModelShape SmolLm2Shape() {
  ModelShape s;
  s.family = "llama";
  s.layers = 30;
  s.hidden = 576;
  s.intermediate = 1536;
  s.heads = 9;
  s.kv_heads = 3;
  s.head_dim = 64;
  s.vocab = 49152;
  s.max_position_embeddings = 8192;
  s.tied_embeddings = true;
  s.rope.theta = 100000;
  return s;
}

absl::StatusOr<MemoryPlan> PlanOf(const Options& options, const ModelShape& shape, DeviceFacts* facts) {
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  const std::string compute = options.Get("compute", cpu.has_bf16 ? "bf16" : "f32");
  facts->device_class = "cpu-" + cpu.isa;
  facts->isa = cpu.isa;
  facts->has_bf16 = cpu.has_bf16;
  facts->cpu_threads = std::atoi(options.Get("threads", std::to_string(HostCpuThreads())).c_str());
  LH_ASSIGN_OR_RETURN(facts->host_bytes,
                      ParseBytes(options.Get("host-bytes", std::to_string(HostMemAvailableBytes()))));
  TrainShape train;
  train.compute = compute == "bf16" ? ComputeType::kBF16 : ComputeType::kF32;
  train.base = options.Get("base", "as_stored") == "nf4" ? BaseWeights::kNf4 : BaseWeights::kAsStored;
  train.lora_rank = std::atoll(options.Get("rank", "16").c_str());
  train.batch_size = std::atoll(options.Get("batch", "2").c_str());
  train.sequence_length = std::atoll(options.Get("tokens", "512").c_str());
  const int64_t documents = std::max(1LL, std::atoll(options.Get("documents", "1").c_str()));
  train.longest_document = (train.sequence_length + documents - 1) / documents;
  const std::string share = options.Get("share", "whole");
  PlanBudget budget;
  budget.share = share == "minimum"    ? PlanShare::kMinimum
                 : share == "balanced" ? PlanShare::kBalanced
                                       : PlanShare::kWhole;
  return MakePlan(shape, train, *facts, budget);
}

nlohmann::json Report(const MemoryPlan& plan, const train::Trainer& trainer, const Recorder& recorder,
                      double gemm_flops, double trained) {
  // The first update touches every page and builds every primitive; the median of the others is the figure.
  std::vector<train::TrainProgress> steps(recorder.steps.begin() + 1, recorder.steps.end());
  std::sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return a.step_seconds < b.step_seconds; });
  const train::TrainProgress& median = steps[steps.size() / 2];
  const double flops = CountFlops(plan, trained).total();
  return {{"tokens_per_s", median.tokens_per_second},
          {"step_seconds", median.step_seconds},
          {"forward_seconds", median.forward_seconds},
          {"loss_seconds", median.loss_seconds},
          {"backward_seconds", median.backward_seconds},
          {"update_seconds", median.update_seconds},
          {"best_tokens_per_s", steps.front().tokens_per_second},
          {"load_seconds", recorder.load_seconds},
          {"rss_bytes", recorder.rss_bytes},
          {"plan_bytes", plan.host_bytes_total},
          {"arena_bytes", plan.arena_bytes},
          {"arena_high_water_bytes", trainer.memory().arena().high_water_bytes()},
          {"plan", DescribeChoices(plan)},
          {"predicted_step_seconds", plan.step_seconds},
          {"flops_per_s", flops / median.step_seconds},
          {"gemm_flops_per_s", gemm_flops},
          {"gemm_share", flops / median.step_seconds / gemm_flops}};
}

absl::StatusOr<nlohmann::json> Bench(const Options& options) {
  if (options.Get("device", "cpu") != "cpu") return absl::UnimplementedError("this build benchmarks the CPU only");
  std::optional<formats::ModelSource> source;
  ModelShape shape = SmolLm2Shape();
  std::unique_ptr<train::WeightSource> weights = std::make_unique<train::SyntheticWeightSource>(shape, 1);
  if (const std::string path = options.Get("model", ""); !path.empty()) {
    LH_ASSIGN_OR_RETURN(formats::ModelSource opened, formats::ModelSource::Open(path));
    source.emplace(std::move(opened));
    shape = source->shape();
    weights = std::make_unique<train::ModelWeightSource>(*source);
  }
  DeviceFacts facts;
  const std::string compute = options.Get("compute", kernels::ProbeCpu().has_bf16 ? "bf16" : "f32");
  const int threads = std::atoi(options.Get("threads", std::to_string(HostCpuThreads())).c_str());
  facts.gemm_flops =
      kernels::MeasureGemmFlops(threads, compute == "bf16" ? kernels::GemmType::kBF16 : kernels::GemmType::kF32);
  LH_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanOf(options, shape, &facts));

  train::TrainerOptions trainer_options;
  trainer_options.plan = plan;
  trainer_options.pin_threads = true;
  trainer_options.hyper.max_steps = 1 + std::max(1LL, std::atoll(options.Get("steps", "4").c_str()));
  const double trained = std::atof(options.Get("trained", "1").c_str());
  RandomBatches batches(plan.train.batch_size, plan.train.sequence_length,
                        std::max(1LL, std::atoll(options.Get("documents", "1").c_str())), trained, shape.vocab,
                        trainer_options.hyper.max_steps);
  Recorder recorder;
  train::RunToEnd control;
  const RealClock clock;
  LH_ASSIGN_OR_RETURN(
      const std::unique_ptr<train::Trainer> trainer,
      train::Trainer::Create(trainer_options, *weights, &batches, nullptr, &recorder, &control, &clock));
  weights.reset();
  source.reset();  // unmaps the model: its pages are not the engine's
  LH_ASSIGN_OR_RETURN(const train::Outcome outcome, trainer->Run());
  LH_CHECK(outcome == train::Outcome::kFinished);
  return Report(plan, *trainer, recorder, facts.gemm_flops, trained);
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  const std::optional<longhaul::Options> options = longhaul::ParseOptions(argc, argv);
  if (!options.has_value()) {
    std::cerr << longhaul::kUsage;
    return 2;
  }
  const absl::StatusOr<nlohmann::json> report = longhaul::Bench(*options);
  if (!report.ok()) {
    std::cerr << "longhaul-bench: " << report.status().message() << "\n";
    return 1;
  }
  if (options->json) {
    std::cout << report->dump() << "\n";
    return 0;
  }
  for (const auto& [key, value] : report->items()) std::cout << key << ": " << value.dump() << "\n";
  return 0;
}
