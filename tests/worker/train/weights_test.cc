#include "worker/train/weights.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/half.h"
#include "tests/worker/train/rig.h"
#include "worker/formats/bnb_nf4.h"

namespace longhaul::train {
namespace {

// The synthetic weights under another storage type.
class StoredWeights final : public WeightSource {
 public:
  StoredWeights(const ModelShape& shape, StoredAs type) : inner_(shape, 3), type_(type) {}
  const ModelShape& shape() const override { return inner_.shape(); }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    return inner_.ReadRows(name, begin, end, out);
  }
  StoredAs Type(const std::string&) const override { return type_; }

 private:
  SyntheticWeightSource inner_;
  StoredAs type_;
};

struct Loaded {
  std::unique_ptr<kernels::Exec> exec;
  std::unique_ptr<EngineMemory> memory;
  ModelWeights weights;
  absl::Status status;

  Loaded(const MemoryPlan& plan, const WeightSource& source) {
    exec = std::move(*CreateExec(plan, false));
    memory = std::move(*EngineMemory::Create(plan, *exec));
    weights = CarveWeights(*memory);
    status = LoadWeights(source, *memory, *exec, weights);
  }
};

TrainShape Nf4Train(BaseWeights base) {
  TrainShape train = TinyTrain(ComputeType::kF64);
  train.base = base;
  return train;
}

std::vector<float> Rows(const WeightSource& source, const std::string& name, int64_t rows, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  EXPECT_TRUE(source.ReadRows(name, 0, rows, out.data()).ok());
  return out;
}

TEST(LoadWeights, AsStoredIsTheSourceInFusedOrder) {
  const ModelShape s = TinyShape();
  const SyntheticWeightSource source(s, 3);
  const Loaded loaded(TinyPlan(s, Nf4Train(BaseWeights::kAsStored)), source);
  ASSERT_TRUE(loaded.status.ok()) << loaded.status;
  const kernels::FrozenWeight& w = loaded.weights.layers[1].qkv;
  const std::vector<float> k = Rows(source, "model.layers.1.self_attn.k_proj.weight", s.kv_dim(), s.hidden);
  const double* const rows = static_cast<const double*>(w.forward) + s.q_dim() * s.hidden;
  for (size_t i = 0; i < k.size(); ++i) ASSERT_EQ(rows[i], static_cast<double>(k[i]));
}

TEST(LoadWeights, Nf4IsTheDoubleQuantisedRoundTripInTheStoredType) {
  const ModelShape s = TinyShape();
  for (StoredAs type : {StoredAs::kF32, StoredAs::kBF16, StoredAs::kF16}) {
    const StoredWeights source(s, type);
    const Loaded loaded(TinyPlan(s, Nf4Train(BaseWeights::kNf4)), source);
    ASSERT_TRUE(loaded.status.ok()) << loaded.status;
    // 32 x 40 elements: 20 blocks of 64 that cross rows.
    std::vector<float> w = Rows(source, "model.layers.0.self_attn.o_proj.weight", s.hidden, s.q_dim());
    const int64_t n = static_cast<int64_t>(w.size());
    const int64_t blocks = Nf4Blocks(n, 64);
    std::vector<uint8_t> packed(static_cast<size_t>(n / 2)), codes(static_cast<size_t>(blocks));
    std::vector<float> absmax(static_cast<size_t>(blocks)), nested(1);
    ASSERT_TRUE(QuantizeNf4(w.data(), n, 64, packed.data(), absmax.data()).ok());
    const float offset = MeanAbsmax(absmax.data(), blocks);
    QuantizeAbsmax(absmax.data(), blocks, offset, codes.data(), nested.data());
    DequantizeAbsmax(codes.data(), kNf4NestedCodes.data(), nested.data(), offset, 0, blocks, 256, absmax.data());
    DequantizeNf4(packed.data(), absmax.data(), 0, n, 64, w.data());
    const double* const rows = static_cast<const double*>(loaded.weights.layers[0].o.forward);
    for (int64_t i = 0; i < n; ++i) {
      float expected = w[static_cast<size_t>(i)];
      if (type == StoredAs::kBF16) expected = Bf16ToFloat(FloatToBf16(expected));
      if (type == StoredAs::kF16) expected = F16ToFloat(FloatToF16(expected));
      ASSERT_EQ(rows[i], static_cast<double>(expected)) << i;
    }
    // Embedding, head and norms are never quantised.
    const std::vector<float> embedding = Rows(source, "model.embed_tokens.weight", s.vocab, s.hidden);
    for (size_t i = 0; i < embedding.size(); ++i) {
      ASSERT_EQ(loaded.weights.embedding.as<double>()[i], static_cast<double>(embedding[i]));
    }
  }
}

TEST(LoadWeights, WeightsStoredAsNf4AreLeftAlone) {
  const ModelShape s = TinyShape();
  const StoredWeights source(s, StoredAs::kNf4);
  const Loaded loaded(TinyPlan(s, Nf4Train(BaseWeights::kNf4)), source);
  ASSERT_TRUE(loaded.status.ok());
  const std::vector<float> w = Rows(source, "model.layers.0.mlp.down_proj.weight", s.hidden, s.intermediate);
  const double* const rows = static_cast<const double*>(loaded.weights.layers[0].down.forward);
  for (size_t i = 0; i < w.size(); ++i) ASSERT_EQ(rows[i], static_cast<double>(w[i]));
}

TEST(LoadWeights, RefusesAnotherShape) {
  const Loaded loaded(TinyPlan(TinyShape(), Nf4Train(BaseWeights::kNf4)), SyntheticWeightSource(TinyShape(true), 3));
  EXPECT_EQ(ErrorReason(loaded.status), "PLAN_MISMATCH");
}

TEST(LoadWeights, RopeTablesAreInDoubleThenRounded) {
  const ModelShape s = TinyShape();
  const Loaded loaded(TinyPlan(s, TinyTrain(ComputeType::kF32)), SyntheticWeightSource(s, 3));
  std::vector<double> frequencies(static_cast<size_t>(s.head_dim / 2));
  RopeInverseFrequencies(s.rope, s.head_dim, 1, frequencies.data());
  const kernels::Tensor& cos = loaded.weights.rope_cos;
  for (int64_t p = 0; p < cos.rows; ++p) {
    for (int64_t i = 0; i < cos.cols; ++i) {
      ASSERT_EQ(cos.as<float>()[p * cos.stride + i],
                static_cast<float>(std::cos(static_cast<double>(p) * frequencies[static_cast<size_t>(i)])));
    }
  }
}

}  // namespace
}  // namespace longhaul::train
