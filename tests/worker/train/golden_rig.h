// The tiny models of tests/golden/make_golden_engine.py: what Transformers computed, and the engine over the same
// files.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tests/worker/formats/test_support.h"
#include "tests/worker/train/rig.h"
#include "worker/formats/peft_adapter.h"
#include "worker/train/export.h"
#include "worker/train/weight_source.h"

namespace longhaul::train {

template <typename T>
std::vector<T> ReadGolden(const formats::SafetensorsSet& set, const std::string& name, formats::StorageType type) {
  const formats::TensorView* view = set.Find(name);
  LH_CHECK(view != nullptr && view->entry->type == type, name);
  std::vector<T> values(static_cast<size_t>(view->bytes()) / sizeof(T));
  std::memcpy(values.data(), view->data, static_cast<size_t>(view->bytes()));
  return values;
}

inline std::vector<double> Doubles(const formats::SafetensorsSet& set, const std::string& name) {
  return ReadGolden<double>(set, name, formats::StorageType::kF64);
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  LH_CHECK(value.ok(), value.status().ToString());
  return *std::move(value);
}

// What Transformers computed, and the micro-batch it was asked about.
struct Expected {
  formats::SafetensorsSet set;
  TinyBatch batch{{}};

  explicit Expected(const std::string& model)
      : set(Must(formats::SafetensorsSet::OpenFile(formats::Golden("engine_" + model + "/expected.safetensors")))) {
    batch.ids = ReadGolden<int32_t>(set, "ids", formats::StorageType::kI32);
    // Hugging Face's labels stand at their own token; ours at the position that predicts it.
    const auto labels = ReadGolden<int32_t>(set, "labels", formats::StorageType::kI32);
    for (int32_t length : ReadGolden<int32_t>(set, "lengths", formats::StorageType::kI32)) {
      for (int32_t i = 0; i < length; ++i) {
        batch.positions.push_back(i);
        batch.labels.push_back(i + 1 < length ? labels[batch.labels.size() + 1] : -100);
      }
      batch.doc_offsets.push_back(static_cast<int64_t>(batch.labels.size()));
    }
  }
};

struct GoldenCase {
  const char* name;
  const char* expected;  // tests/golden/engine_*
  const char* model;     // the folder that the engine reads
  const char* adapter;
  BaseWeights base;
};

// The model, its adapter and the engine over them. Tiles that divide nothing, one layer kept, one recomputed.
struct Engine {
  formats::ModelSource source;
  formats::LoadedAdapter loaded;
  MemoryPlan plan;
  Rig rig;

  Engine(const GoldenCase& c, ComputeType compute)
      : Engine(c, compute, formats::Golden(std::string("engine_") + c.model)) {}
  // The same over another folder.
  Engine(const GoldenCase& c, ComputeType compute, const std::string& folder)
      : source(Must(formats::ModelSource::Open(folder))),
        loaded(Must(
            formats::ReadAdapter(formats::Golden(std::string("engine_") + c.adapter + "/adapter"), source.shape()))),
        plan(PlanFor(source.shape(), loaded.config, compute, c.base)),
        rig(plan, ModelWeightSource(source), loaded.config.Scale()) {
    if (compute != ComputeType::kF64) {
      const absl::Status imported = ImportAdapter(loaded, *rig.adapter);
      EXPECT_TRUE(imported.ok()) << imported;
      return;
    }
    // The oracle has no import of its own: f32 values into f64 masters.
    for (const LoraModule& m : rig.adapter->modules()) {
      for (const formats::LoraPair& pair : loaded.pairs) {
        if (pair.layer != m.layer || pair.target != LoraTargetName(m.target)) continue;
        for (size_t i = 0; i < pair.a.size(); ++i)
          SetElement(rig.adapter->master(), m.a_offset + static_cast<int64_t>(i), pair.a[i]);
        for (size_t i = 0; i < pair.b.size(); ++i)
          SetElement(rig.adapter->master(), m.b_offset + static_cast<int64_t>(i), pair.b[i]);
      }
    }
  }

  static MemoryPlan PlanFor(const ModelShape& shape, const formats::AdapterConfig& config, ComputeType compute,
                            BaseWeights base) {
    TrainShape train = TinyTrain(compute, 1, 48);
    train.base = base;
    train.lora_rank = config.r;
    train.lora_targets = Must(LoraTargetsFromNames(config.target_modules));
    return TinyPlan(shape, train, {1, 7, 5});
  }

  std::vector<double> Logits(const TokenBatch& batch) {
    EXPECT_TRUE(rig.decoder->Forward(rig.ops->Bring(batch), Rig::Go));
    const kernels::Tensor x = rig.decoder->Stream(plan.shape.layers, batch.rows);
    std::vector<double> all;
    for (int64_t begin = 0; begin < batch.rows; begin += plan.choices.loss_tile_rows) {
      const int64_t end = std::min(batch.rows, begin + plan.choices.loss_tile_rows);
      const std::vector<double> tile = Values(rig.loss->Logits(x.Rows(begin, end)));
      all.insert(all.end(), tile.begin(), tile.end());
    }
    return all;
  }

  std::vector<double> Gradient(int64_t offset, int64_t count) const {
    std::vector<double> values;
    for (int64_t i = offset; i < offset + count; ++i) values.push_back(Element(rig.adapter->grad(), i));
    return values;
  }
};

}  // namespace longhaul::train
