#include "worker/formats/bnb_nf4.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/formats/test_support.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

// Vectors made by bitsandbytes' CUDA kernels on an H200 (tests/golden/make_golden_formats.py cut them to size).
struct Case {
  std::vector<float> input;
  StorageType dtype;
  int64_t block;
};

class Nf4Test : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    absl::StatusOr<SafetensorsSet> set = SafetensorsSet::OpenFile(Golden("nf4_cuda.safetensors"));
    ASSERT_TRUE(set.ok()) << set.status();
    golden_ = std::make_unique<SafetensorsSet>(*std::move(set));
    name_ = GetParam();
    const auto facts = nlohmann::json::parse(golden_->metadata().at(name_));
    case_ = {Floats(*golden_, name_ + ".input"), golden_->Find(name_ + ".input")->entry->type, facts["blocksize"]};
    cut_ = facts["cut"];
  }
  int64_t n() const { return static_cast<int64_t>(case_.input.size()); }
  int64_t blocks() const { return Nf4Blocks(n(), case_.block); }
  std::vector<float> Rounded(std::vector<float> values) const {
    for (float& x : values) {
      if (case_.dtype == StorageType::kBF16) x = Bf16ToFloat(FloatToBf16(x));
      if (case_.dtype == StorageType::kF16) x = F16ToFloat(FloatToF16(x));
    }
    return values;
  }
  std::unique_ptr<SafetensorsSet> golden_;
  std::string name_;
  Case case_;
  bool cut_ = false;
};

uint8_t CodeAt(const std::vector<uint8_t>& packed, size_t i) {
  return static_cast<uint8_t>(i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15);
}

TEST_P(Nf4Test, QuantisesAsCudaDoes) {
  std::vector<uint8_t> packed(static_cast<size_t>(Nf4PackedBytes(n())), 0xee);
  std::vector<float> absmax(static_cast<size_t>(blocks()), std::nanf(""));
  ASSERT_TRUE(QuantizeNf4(case_.input.data(), n(), case_.block, packed.data(), absmax.data()).ok());
  EXPECT_EQ(Bits(absmax), Bits(Floats(*golden_, name_ + ".absmax")));
  const std::vector<uint8_t> cuda = BytesOf(*golden_, name_ + ".packed");
  if (name_ != "thresholds_f32") {
    EXPECT_EQ(packed, cuda);
    return;
  }
  // Values on and one ulp beside every threshold, in six blocks. In the block of absmax 0.017 the GPU's fast reciprocal
  // is 58.823532 where IEEE division rounds to 58.823528, one ulp less, so that eleven scaled values land on the other
  // side of their threshold. All other blocks, whose reciprocals agree, are exact.
  std::set<size_t> differing;
  for (size_t i = 0; i < case_.input.size(); ++i) {
    if (CodeAt(packed, i) != CodeAt(cuda, i)) differing.insert(i);
    EXPECT_LE(std::abs(int{CodeAt(packed, i)} - int{CodeAt(cuda, i)}), 1);
  }
  const std::set<size_t> known = {256 + 2,  256 + 5,  256 + 6,  256 + 9,  256 + 11, 256 + 14,
                                  256 + 17, 256 + 18, 256 + 22, 256 + 23, 256 + 30};
  EXPECT_EQ(differing, known);
  EXPECT_FLOAT_EQ(absmax[4], 0.017f);
}

TEST_P(Nf4Test, DequantisesAsCudaDoes) {
  const std::vector<uint8_t> packed = BytesOf(*golden_, name_ + ".packed");
  const std::vector<float> absmax = Floats(*golden_, name_ + ".absmax");
  std::vector<float> out(static_cast<size_t>(n()), std::nanf(""));
  DequantizeNf4(packed.data(), absmax.data(), 0, n(), case_.block, out.data());
  EXPECT_EQ(Bits(Rounded(out)), Bits(Floats(*golden_, name_ + ".dequant")));

  // Any sub-range gives the same values, whatever it starts and ends on.
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {3, 70}, {63, n()}, {n(), n()}}) {
    if (end > n()) continue;
    std::vector<float> part(static_cast<size_t>(end - begin), std::nanf(""));
    DequantizeNf4(packed.data(), absmax.data(), begin, end, case_.block, part.data());
    EXPECT_EQ(Bits(part), Bits({out.begin() + begin, out.begin() + end})) << begin << " to " << end;
  }
}

TEST_P(Nf4Test, DoubleQuantisesAsCudaDoes) {
  const std::vector<float> absmax = Floats(*golden_, name_ + ".absmax");
  const float offset = Floats(*golden_, name_ + ".dq_offset")[0];
  // torch.mean adds in another order: a few ulp. Of a cut case the file has too few absmaxes for its mean.
  if (!cut_) {
    EXPECT_NEAR(MeanAbsmax(absmax.data(), blocks()), offset, 4e-7f * offset);
  }
  std::vector<uint8_t> codes(absmax.size(), 0xee);
  std::vector<float> nested(static_cast<size_t>(Nf4Blocks(blocks(), kNf4NestedBlock)), std::nanf(""));
  QuantizeAbsmax(absmax.data(), blocks(), offset, codes.data(), nested.data());
  EXPECT_EQ(codes, BytesOf(*golden_, name_ + ".dq_absmax_u8"));
  EXPECT_EQ(Bits(nested), Bits(Floats(*golden_, name_ + ".dq_nested_absmax")));

  std::vector<float> scales(absmax.size(), std::nanf(""));
  DequantizeAbsmax(codes.data(), kNf4NestedCodes.data(), nested.data(), offset, 0, blocks(), kNf4NestedBlock,
                   scales.data());
  const std::vector<uint8_t> packed = BytesOf(*golden_, name_ + ".packed");
  std::vector<float> out(static_cast<size_t>(n()), std::nanf(""));
  DequantizeNf4(packed.data(), scales.data(), 0, n(), case_.block, out.data());
  EXPECT_EQ(Bits(Rounded(out)), Bits(Floats(*golden_, name_ + ".dq_dequant")));
}

INSTANTIATE_TEST_SUITE_P(Cuda, Nf4Test,
                         testing::Values("normal_bf16", "normal_f16", "normal_f32", "ragged_bf16", "odd_f32",
                                         "block128", "block256", "edges_bf16", "thresholds_f32", "uniform_f32"));

TEST(Nf4TablesTest, AreTheOnesInCheckpoints) {
  const auto golden = SafetensorsSet::OpenFile(Golden("nf4_cuda.safetensors"));
  ASSERT_TRUE(golden.ok());
  EXPECT_EQ(Bits({kNf4Codes.begin(), kNf4Codes.end()}), Bits(Floats(*golden, "code")));
  EXPECT_EQ(Bits({kNf4NestedCodes.begin(), kNf4NestedCodes.end()}), Bits(Floats(*golden, "nested_code")));
}

TEST(Nf4BlocksTest, EveryLegalSizeRoundTrips) {
  std::vector<float> w(4096 * 2 + 5);
  for (size_t i = 0; i < w.size(); ++i) w[i] = std::sin(static_cast<float>(i) * 0.7f);
  const auto n = static_cast<int64_t>(w.size());
  for (int64_t block = 32; block <= 4096; block *= 2) {
    ASSERT_TRUE(IsNf4BlockSize(block));
    std::vector<uint8_t> packed(static_cast<size_t>(Nf4PackedBytes(n)));
    std::vector<float> absmax(static_cast<size_t>(Nf4Blocks(n, block)));
    ASSERT_TRUE(QuantizeNf4(w.data(), n, block, packed.data(), absmax.data()).ok());
    std::vector<float> out(w.size());
    DequantizeNf4(packed.data(), absmax.data(), 0, n, block, out.data());
    for (size_t i = 0; i < w.size(); ++i) {
      // Half of the widest gap between codes (0.3038) times the block's scale.
      ASSERT_LE(std::fabs(out[i] - w[i]), 0.152f * absmax[i / static_cast<size_t>(block)]) << i << " of " << block;
    }
  }
  for (int64_t block : {0, 16, 63, 96, 8192}) EXPECT_FALSE(IsNf4BlockSize(block)) << block;
}

TEST(Nf4BlocksTest, BlocksOfZerosAndSubnormalsAreCodeZero) {
  std::vector<float> w(128, 0.0f);
  w[70] = 1e-40f;
  uint8_t packed[64];
  float absmax[2];
  ASSERT_TRUE(QuantizeNf4(w.data(), 128, 64, packed, absmax).ok());
  for (uint8_t pair : packed) EXPECT_EQ(pair, 0);
  EXPECT_EQ(absmax[0], 0.0f);
  EXPECT_EQ(absmax[1], 0.0f);
}

TEST(Nf4BlocksTest, NamesTheFirstWeightThatIsNotFinite) {
  std::vector<float> w(100, 1.0f);
  uint8_t packed[50];
  float absmax[2];
  w[90] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(QuantizeNf4(w.data(), 100, 64, packed, absmax).message(), HasSubstr("weight 90 is infinite"));
  w[77] = std::nanf("");
  EXPECT_THAT(QuantizeNf4(w.data(), 100, 64, packed, absmax).message(), HasSubstr("weight 77 is NaN"));
}

TEST(Nf4QuantStateTest, WritesPythonsJsonAndReadsItBack) {
  Nf4QuantState state;
  state.shape = {2048, 512};
  EXPECT_EQ(Nf4QuantStateToJson(state),
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [2048, 512]}");
  state.nested = true;
  state.nested_offset = 0.1f;
  state.dtype = StorageType::kF16;
  const std::string json = Nf4QuantStateToJson(state);
  EXPECT_EQ(json,
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [2048, 512], "
            "\"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.10000000149011612}");
  const auto back = Nf4QuantStateFromJson(json, "f");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(back->nested);
  EXPECT_EQ(back->nested_offset, 0.1f);
  EXPECT_EQ(back->dtype, StorageType::kF16);
  EXPECT_EQ(back->shape, state.shape);
  EXPECT_EQ(back->nested_block_size, 256);
}

TEST(Nf4QuantStateTest, RefusesWhatItCannotTrust) {
  const nlohmann::json good = {{"quant_type", "nf4"},  {"blocksize", 64},         {"dtype", "bfloat16"},
                               {"shape", {4, 16}},     {"nested_blocksize", 256}, {"nested_dtype", "float32"},
                               {"nested_offset", 0.25}};
  ASSERT_TRUE(Nf4QuantStateFromJson(good.dump(), "f").ok());
  const auto error = [&good](const char* key, const nlohmann::json& value) {
    nlohmann::json bad = good;
    if (value.is_discarded()) {
      bad.erase(key);
    } else {
      bad[key] = value;
    }
    const auto state = Nf4QuantStateFromJson(bad.dump(), "f");
    return state.ok() ? "OK" : std::string(state.status().message());
  };
  const nlohmann::json gone(nlohmann::json::value_t::discarded);
  EXPECT_THAT(error("nested_offset", gone), HasSubstr("nested_offset is missing"));
  EXPECT_THAT(error("nested_offset", "0.25"), HasSubstr("nested_offset is missing or no number"));
  EXPECT_THAT(error("nested_offset", nullptr), HasSubstr("nested_offset"));
  EXPECT_THAT(error("nested_offset", 1e300), HasSubstr("not finite"));
  EXPECT_THAT(error("nested_blocksize", gone), HasSubstr("nested_blocksize"));
  EXPECT_THAT(error("nested_dtype", "float16"), HasSubstr("nested_dtype"));
  EXPECT_THAT(error("quant_type", "fp4"), HasSubstr("\"fp4\"; nf4 is supported"));
  EXPECT_THAT(error("blocksize", 63), HasSubstr("blocksize"));
  EXPECT_THAT(error("dtype", "int8"), HasSubstr("dtype is \"int8\""));
  EXPECT_THAT(error("shape", {4}), HasSubstr("[out, in]"));
  EXPECT_THAT(error("shape", {4, 0}), HasSubstr("positive"));
  EXPECT_THAT(error("shape", {int64_t{1} << 62, 4}), HasSubstr("overflows"));
}

}  // namespace
}  // namespace longhaul::formats
