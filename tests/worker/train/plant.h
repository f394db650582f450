// NaN and infinities planted in a training while it runs, one update after the other, on whatever device the plan is
// of. What must happen is the same for all: that update is skipped, counted and named, and the next one is as if
// nothing had been.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/half.h"
#include "tests/worker/train/rig.h"
#include "worker/train/trainer.h"

namespace longhaul::train {

inline constexpr int32_t kPlantedToken = 3;  // of every batch

enum class Place { kEmbeddingRow, kFirstNorm, kLastNorm, kAdapterB, kGradient };

struct Planted {
  Place place;
  double value;
};

inline std::vector<Planted> AllPlants() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<Planted> all;
  // The norms' weights make activations that are not finite: what goes into q, k, v, and what goes into the loss.
  for (const Place place :
       {Place::kEmbeddingRow, Place::kFirstNorm, Place::kLastNorm, Place::kAdapterB, Place::kGradient}) {
    for (const double value : {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity}) {
      all.push_back({place, value});
    }
  }
  return all;
}

// Update 2 j + 1 (from 0) begins with AllPlants()[j], the one after it with what was there before.
class PlantingBatches final : public BatchSource {
 public:
  PlantingBatches(std::vector<TinyBatch> batches) : inner_(std::move(batches), 1) {}

  int64_t UpdatesPerEpoch() const override { return inner_.UpdatesPerEpoch(); }
  Window GetWindow(int64_t epoch, int64_t update) override {
    // A window is asked for again where its update is described.
    if (update == next_) {
      ++next_;
      const auto plant = static_cast<size_t>(update / 2);
      if (update % 2 == 1) {
        Plant(plants_[plant]);
      } else if (update > 0) {
        Restore(plants_[plant - 1]);
      }
    }
    return inner_.GetWindow(epoch, update);
  }
  TokenBatch Get(int64_t index) override { return inner_.Get(index); }
  std::string Describe() const override { return inner_.Describe(); }
  int64_t MostTokens() const override { return inner_.MostTokens(); }
  int64_t LongestDocument() const override { return inner_.LongestDocument(); }
  int64_t MostDocuments() const override { return inner_.MostDocuments(); }

  void Of(const Trainer* trainer) {
    trainer_ = trainer;
    weights_ = CarveWeights(trainer->memory());
  }

 private:
  std::pair<kernels::Tensor, int64_t> Where(Place place) const {
    const Adapter& adapter = trainer_->adapter();
    switch (place) {
      case Place::kEmbeddingRow:
        return {weights_.embedding, kPlantedToken * trainer_->memory().plan().shape.hidden + 1};
      case Place::kFirstNorm:
        return {weights_.layers[0].norm1, 2};
      case Place::kLastNorm:
        return {weights_.final_norm, 3};
      case Place::kAdapterB:
        return {adapter.master(), adapter.modules().back().b_offset + 1};
      case Place::kGradient:
        return {adapter.grad(), adapter.modules().front().a_offset + 4};
    }
    return {};
  }
  // Queued where the ops are, so it comes between the updates.
  void Plant(const Planted& planted) {
    const kernels::Exec& exec = trainer_->memory().exec();
    const auto [tensor, element] = Where(planted.place);
    const int64_t bytes = kernels::DTypeBytes(tensor.dtype);
    char* const at = static_cast<char*>(tensor.data) + element * bytes;
    exec.Download(&before_, at, bytes);
    exec.Synchronize();
    const auto as_f32 = static_cast<float>(planted.value);
    const uint16_t as_bf16 = FloatToBf16(as_f32);
    ASSERT_TRUE(bytes == 2 || bytes == 4);
    exec.Upload(at, bytes == 2 ? static_cast<const void*>(&as_bf16) : &as_f32, bytes);
    trainer_->ops().AdapterChanged();
  }
  void Restore(const Planted& planted) {
    if (planted.place == Place::kGradient) return;  // the skipped update left zeros
    const auto [tensor, element] = Where(planted.place);
    const int64_t bytes = kernels::DTypeBytes(tensor.dtype);
    trainer_->memory().exec().Upload(static_cast<char*>(tensor.data) + element * bytes, &before_, bytes);
    trainer_->ops().AdapterChanged();
  }

  FixedBatches inner_;
  const std::vector<Planted> plants_ = AllPlants();
  const Trainer* trainer_ = nullptr;
  ModelWeights weights_;
  int64_t next_ = 0;
  float before_ = 0;  // the bytes of it
};

struct PlantedRun final : public TrainerObserver {
  void OnProgress(const TrainProgress& p) override { progress.push_back(p); }
  void OnWarning(const std::string& text) override { warnings.push_back(text); }
  std::vector<TrainProgress> progress;
  std::vector<std::string> warnings;
};

// `rows` tokens a batch. The plan's embedding is not its head: else one NaN row would be in every loss.
inline void ExpectPlantsSkippedCountedAndNamed(const MemoryPlan& plan, const WeightSource& source, int64_t rows) {
  const std::vector<Planted> plants = AllPlants();
  const auto updates = static_cast<int64_t>(2 * plants.size() + 1);
  std::vector<TinyBatch> batches;
  for (int64_t i = 0; i < updates; ++i) {
    batches.emplace_back(std::vector<int64_t>{rows}, plan.shape.vocab, 40 + static_cast<uint64_t>(i));
    batches.back().ids[4] = kPlantedToken;
  }
  PlantingBatches planting(std::move(batches));
  PlantedRun run;
  RunToEnd control;
  const RealClock clock;
  TrainerOptions options;
  options.plan = plan;
  options.hyper.max_steps = updates;
  auto trainer = Trainer::Create(options, source, &planting, nullptr, &run, &control, &clock);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  planting.Of(trainer->get());
  const auto outcome = (*trainer)->Run();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ((*trainer)->state().skipped_updates, static_cast<int64_t>(plants.size()));
  EXPECT_EQ((*trainer)->state().adam_steps, updates - static_cast<int64_t>(plants.size()));
  ASSERT_EQ(run.warnings.size(), plants.size());
  ASSERT_EQ(run.progress.size(), static_cast<size_t>(updates));
  for (size_t j = 0; j < plants.size(); ++j) {
    SCOPED_TRACE("place " + std::to_string(static_cast<int>(plants[j].place)) + " value " +
                 std::to_string(plants[j].value));
    EXPECT_THAT(run.warnings[j], testing::HasSubstr("update " + std::to_string(2 * j + 2) + ":"));
    EXPECT_THAT(run.warnings[j], testing::HasSubstr("sample " + std::to_string(2 * j + 1)));
    const bool in_gradient = plants[j].place == Place::kGradient;
    EXPECT_EQ(std::isfinite(run.progress[2 * j + 1].loss), in_gradient);
    EXPECT_FALSE(std::isfinite(run.progress[2 * j + 1].grad_norm));
    EXPECT_TRUE(std::isfinite(run.progress[2 * j + 2].loss));
    EXPECT_TRUE(std::isfinite(run.progress[2 * j + 2].grad_norm));
  }
  const Adapter& adapter = (*trainer)->adapter();
  adapter.Download();
  for (const kernels::Tensor* t : {&adapter.host().master, &adapter.host().moment1, &adapter.host().moment2}) {
    for (int64_t i = 0; i < adapter.params(); ++i) ASSERT_TRUE(std::isfinite(Element(*t, i))) << i;
  }
}

}  // namespace longhaul::train
