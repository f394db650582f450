#include "base/nf4.h"

#include <cstdlib>

#include "base/half.h"
#include "nlohmann/json.hpp"
#include "tests/kernels/test_support.h"
#include "worker/formats/dequant.h"
#include "worker/formats/safetensors.h"

namespace longhaul::kernels {
namespace {

// An NF4 matrix and all that may come with it, in the Exec's memory, poisoned.
struct Owned {
  Owned(int64_t out, int64_t in, int64_t block, DType rounded_to)
      : packed(static_cast<size_t>(Nf4PackedBytes(out * in)), 0xee), offset(std::nanf("")) {
    weight.out = out;
    weight.in = in;
    weight.block = block;
    weight.rounded_to = rounded_to;
    absmax.assign(static_cast<size_t>(weight.blocks()), std::nanf(""));
    absmax_codes.assign(absmax.size(), 0xee);
    nested_absmax.assign(static_cast<size_t>(Nf4Blocks(weight.blocks(), kNf4NestedBlock)), std::nanf(""));
    weight.packed = packed.data();
    weight.absmax = absmax.data();
  }
  // With the nested fields set.
  Nf4Weight Nested() {
    Nf4Weight nested = weight;
    nested.absmax_codes = absmax_codes.data();
    nested.nested_absmax = nested_absmax.data();
    nested.nested_offset = offset.get();
    return nested;
  }
  TestVector<uint8_t> packed, absmax_codes;
  TestVector<float> absmax, nested_absmax;
  Shared<float> offset;
  Nf4Weight weight;
};

template <typename T>
std::vector<uint32_t> Bits(const T& values) {
  WaitForOps();
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

float RoundTo(DType dtype, float x) {
  if (dtype == DType::kBF16) return Bf16ToFloat(FloatToBf16(x));
  return dtype == DType::kF16 ? F16ToFloat(FloatToF16(x)) : x;
}

TestVector<uint8_t> Narrow(DType dtype, const std::vector<float>& values) {
  TestVector<uint8_t> bytes(values.size() * static_cast<size_t>(DTypeBytes(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(bytes.data())[i] = values[i];
    } else {
      reinterpret_cast<uint16_t*>(bytes.data())[i] =
          dtype == DType::kBF16 ? FloatToBf16(values[i]) : FloatToF16(values[i]);
    }
  }
  return bytes;
}

// Every row block of the matrix, dequantised into both output types, against `want`, to the bit.
void ExpectDequantised(const Exec& exec, const Nf4Weight& w, const std::vector<float>& want, int64_t gap) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const int64_t middle = w.out / 3;
    for (const auto& [begin, end] :
         std::vector<std::pair<int64_t, int64_t>>{{0, w.out}, {0, middle}, {middle, w.out}}) {
      if (begin == end) continue;
      Buffer y(type, end - begin, w.in, gap);
      Nf4Dequantize(exec, w, begin, y.view());
      ExpectNear(
          y,
          [&, first = begin](int64_t i, int64_t j) {
            const float value = RoundTo(w.rounded_to, want[static_cast<size_t>((first + i) * w.in + j)]);
            return static_cast<double>(RoundTo(type, value));
          },
          0, "dequantised");
    }
  }
}

// Vectors made by bitsandbytes' CUDA kernels on an H200.
class Nf4GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* const folder = std::getenv("LONGHAUL_SOURCE_DIR");
    const std::string path =
        std::string(folder == nullptr ? LONGHAUL_SOURCE_DIR : folder) + "/tests/golden/nf4_cuda.safetensors";
    auto set = formats::SafetensorsSet::OpenFile(path);
    ASSERT_TRUE(set.ok()) << set.status().message() << "; LONGHAUL_SOURCE_DIR names the source folder";
    golden_ = std::make_unique<formats::SafetensorsSet>(*std::move(set));
    name_ = GetParam();
    const auto facts = nlohmann::json::parse(golden_->metadata().at(name_));
    block_ = facts["blocksize"];
    const auto& entry = *golden_->Find(name_ + ".input")->entry;
    type_ = entry.type == formats::StorageType::kBF16  ? DType::kBF16
            : entry.type == formats::StorageType::kF16 ? DType::kF16
                                                       : DType::kF32;
    out_ = entry.shape[0];
    in_ = entry.shape[1];
  }
  std::vector<float> Floats(const std::string& what) const {
    const formats::TensorView* view = golden_->Find(name_ + what);
    std::vector<float> out(static_cast<size_t>(view->bytes() / formats::BlockBytes(view->entry->type)));
    formats::DequantizeRows(view->entry->type, view->data, 1, static_cast<int64_t>(out.size()), out.data());
    return out;
  }
  TestVector<uint8_t> Bytes(const std::string& what) const {
    const formats::TensorView* view = golden_->Find(name_ + what);
    return {view->data, view->data + view->bytes()};
  }
  std::unique_ptr<formats::SafetensorsSet> golden_;
  std::string name_;
  DType type_ = DType::kF32;
  int64_t out_ = 0, in_ = 0, block_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Bitsandbytes, Nf4GoldenTest,
                         testing::Values("normal_bf16", "normal_f16", "normal_f32", "ragged_bf16", "odd_f32",
                                         "block128", "block256", "edges_bf16", "thresholds_f32", "uniform_f32"));

TEST_P(Nf4GoldenTest, QuantisesToTheSameBits) {
  const auto exec = MakeExec(2);
  Owned owned(out_, in_, block_, type_);
  const TestVector<uint8_t> input = Narrow(type_, Floats(".input"));
  Nf4Quantize(*exec, MakeTensor(const_cast<uint8_t*>(input.data()), type_, out_, in_), owned.weight);
  EXPECT_EQ(Bits(owned.absmax), Bits(Floats(".absmax")));
  // bitsandbytes multiplies by the GPU's approximate reciprocal. Where IEEE's differs, values laid on the thresholds
  // take another code: tests/worker/formats/bnb_nf4_test.cc lists them.
  if (exec->backend() == Backend::kCuda || name_ != "thresholds_f32") {
    EXPECT_TRUE(owned.packed == Bytes(".packed"));
  }

  // From its absmax and its offset.
  const std::vector<float> absmax = Floats(".absmax");
  owned.absmax.assign(absmax.begin(), absmax.end());
  owned.offset.value() = Floats(".dq_offset")[0];
  Nf4NestAbsmax(*exec, owned.Nested(), /*keep_offset=*/true);
  EXPECT_EQ(Bits(owned.nested_absmax), Bits(Floats(".dq_nested_absmax")));
  EXPECT_TRUE(owned.absmax_codes == Bytes(".dq_absmax_u8"));
}

TEST_P(Nf4GoldenTest, DequantisesToTheSameBits) {
  const auto exec = MakeExec(2);
  Owned owned(out_, in_, block_, type_);
  owned.packed = Bytes(".packed");
  const std::vector<float> absmax = Floats(".absmax"), nested = Floats(".dq_nested_absmax");
  owned.absmax.assign(absmax.begin(), absmax.end());
  owned.weight.packed = owned.packed.data();
  owned.weight.absmax = owned.absmax.data();
  ExpectDequantised(*exec, owned.weight, Floats(".dequant"), 8);

  owned.absmax_codes = Bytes(".dq_absmax_u8");
  owned.nested_absmax.assign(nested.begin(), nested.end());
  owned.offset.value() = Floats(".dq_offset")[0];
  ExpectDequantised(*exec, owned.Nested(), Floats(".dq_dequant"), 0);
}

// How far x is from the nearest threshold, relative to it.
float DistanceToThreshold(float x) {
  float least = 1;
  for (const float threshold : kNf4Thresholds) least = std::min(least, std::abs((x - threshold) / threshold));
  return least;
}

void CheckAgainstCodec(const Exec& exec, int64_t out, int64_t in, int64_t block, DType type) {
  std::mt19937 generator(static_cast<uint32_t>(out * 1000 + in));
  std::normal_distribution<float> normal(0, 0.02f);
  const auto n = static_cast<size_t>(out * in);
  std::vector<float> values(n);
  for (float& value : values) value = RoundTo(type, normal(generator));
  std::fill_n(values.begin(), std::min<size_t>(n, 70), 0.0f);  // a block of zeros

  Owned owned(out, in, block, type);
  TestVector<uint8_t> input = Narrow(type, values);
  Nf4Quantize(exec, MakeTensor(input.data(), type, out, in), owned.weight);
  std::vector<uint8_t> packed(owned.packed.size());
  std::vector<float> absmax(owned.absmax.size());
  ASSERT_TRUE(QuantizeNf4(values.data(), out * in, block, packed.data(), absmax.data()).ok());
  EXPECT_EQ(Bits(owned.absmax), Bits(absmax));
  for (size_t i = 0; i < n; ++i) {
    const auto code = [i](const auto& bytes) { return i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15; };
    if (code(owned.packed) == code(packed)) continue;
    // Only a reciprocal that is one unit of the last place off may change a code, and only by one.
    EXPECT_EQ(exec.backend(), Backend::kCuda);
    EXPECT_EQ(std::abs(code(owned.packed) - code(packed)), 1);
    EXPECT_LE(DistanceToThreshold(values[i] / absmax[i / static_cast<size_t>(block)]), 4 * 0x1p-23f);
  }
  std::vector<float> want(n);
  DequantizeNf4(owned.packed.data(), owned.absmax.data(), 0, out * in, block, want.data());
  ExpectDequantised(exec, owned.weight, want, 3);
  ExpectDequantised(exec, owned.weight, want, 8);

  const Nf4Weight nested = owned.Nested();
  Nf4NestAbsmax(exec, nested, /*keep_offset=*/false);
  // Sums in double in two orders: the mean may fall on the other side of a rounding to f32.
  const float mean = MeanAbsmax(absmax.data(), nested.blocks());
  EXPECT_NEAR(owned.offset.value(), mean, 0x1p-23f * mean);
  std::vector<float> scales(absmax.size());
  DequantizeAbsmax(owned.absmax_codes.data(), kNf4NestedCodes.data(), owned.nested_absmax.data(), owned.offset.value(),
                   0, nested.blocks(), kNf4NestedBlock, scales.data());
  DequantizeNf4(owned.packed.data(), scales.data(), 0, out * in, block, want.data());
  ExpectDequantised(exec, nested, want, 0);
}

TEST(Nf4Test, AgreesWithTheCodecOnEveryShape) {
  const auto exec = MakeExec(2);
  struct Shape {
    int64_t out, in, block;
  };
  // One value, odd, rows that blocks cross, whole units of 8, more than one nested block, the smallest and largest
  // blocks; rows that begin in the middle of what a warp of a GPU takes.
  for (const auto& [out, in, block] : std::vector<Shape>{{1, 1, 64},
                                                         {1, 2, 64},
                                                         {3, 7, 64},
                                                         {9, 8, 32},
                                                         {50, 104, 32},
                                                         {48, 100, 64},
                                                         {33, 40, 64},
                                                         {70, 576, 64},
                                                         {3, 5000, 4096},
                                                         {64, 520, 128}}) {
    for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) CheckAgainstCodec(*exec, out, in, block, type);
  }
}

TEST(Nf4Test, AnotherNestedMapCounts) {
  const auto exec = MakeExec(1);
  Owned owned(4, 64, 64, DType::kF32);
  std::fill(owned.packed.begin(), owned.packed.end(), uint8_t{0xff});  // code 15, 1.0
  owned.absmax_codes = {0, 1, 2, 255};
  owned.nested_absmax[0] = 2;
  owned.offset.value() = 0.5f;
  TestVector<float> map(256);
  for (size_t i = 0; i < map.size(); ++i) map[i] = static_cast<float>(i);
  Nf4Weight w = owned.Nested();
  w.nested_map = map.data();
  Buffer y(DType::kF32, 4, 64);
  Nf4Dequantize(*exec, w, 0, y.view());
  const double want[] = {0.5, 2.5, 4.5, 510.5};
  ExpectNear(
      y, [&](int64_t i, int64_t) { return want[i]; }, 0, "map[code] * 2 + 0.5");
}

}  // namespace
}  // namespace longhaul::kernels
