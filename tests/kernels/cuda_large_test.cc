// Matrices of more than 2^31 elements: the last rows, which 32-bit indices would not reach, against the same rows
// alone.
#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_exec.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kCols = 14'336;
constexpr int64_t kRows = (int64_t{1} << 31) / kCols + 1000;
constexpr int64_t kTail = 3;

// Device memory of kRows x kCols bf16, zero but for the tail.
class Large {
 public:
  Large(const Exec& exec, const Buffer& tail) : exec_(exec), memory_(kRows * kCols * 2) {
    Zero(exec, all());
    Copy(exec, tail.view(), all().Rows(kRows - kTail, kRows));
  }
  Tensor all() const { return MakeTensor(memory_.as<void>(), DType::kBF16, kRows, kCols); }
  Buffer Tail() const {
    Buffer tail(DType::kBF16, kTail, kCols);
    Copy(exec_, all().Rows(kRows - kTail, kRows), tail.view());
    return tail;
  }

 private:
  const Exec& exec_;
  DeviceBuffer memory_;
};

class LargeTest : public testing::Test {
 protected:
  void SetUp() override {
    size_t free_bytes = 0, total_bytes = 0;
    CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "test", "cudaMemGetInfo");
    if (free_bytes < static_cast<size_t>(4 * kRows * kCols * 2)) GTEST_SKIP() << "needs 18 GiB of device memory";
  }
  static Buffer Tail(uint32_t seed) { return Buffer::Random(DType::kBF16, kTail, kCols, seed); }
  std::unique_ptr<Exec> exec_ = MakeExec(1);
};

TEST_F(LargeTest, ElementwiseOpsReachTheEnd) {
  const Buffer gate_tail = Tail(1), up_tail = Tail(2);
  const Large gate(*exec_, gate_tail), up(*exec_, up_tail), y(*exec_, gate_tail);
  SwiGlu(*exec_, gate.all(), up.all(), y.all());
  Buffer want(DType::kBF16, kTail, kCols);
  SwiGlu(*exec_, gate_tail.view(), up_tail.view(), want.view());
  EXPECT_TRUE(y.Tail().bytes() == want.bytes()) << "swiglu";

  Dropout(*exec_, gate.all(), 5, 0, 0.5, y.all());
  Dropout(*exec_, gate_tail.view(), 5, kRows - kTail, 0.5, want.view());
  EXPECT_TRUE(y.Tail().bytes() == want.bytes()) << "dropout";

  Shared<int64_t> count;
  Buffer bad_tail = gate_tail;
  bad_tail.Set(kTail - 1, kCols - 1, std::nan(""));
  Copy(*exec_, bad_tail.view(), y.all().Rows(kRows - kTail, kRows));
  CountNonFinite(*exec_, y.all(), count.get());
  EXPECT_EQ(count.value(), 1);
}

TEST_F(LargeTest, RowOpsReachTheEnd) {
  const Buffer x_tail = Tail(1), w = Buffer::Random(DType::kBF16, 1, kCols, 2);
  const Large x(*exec_, x_tail), y(*exec_, x_tail);
  RmsNorm(*exec_, x.all(), w.view(), 1e-5, y.all(), {});
  Buffer want(DType::kBF16, kTail, kCols);
  RmsNorm(*exec_, x_tail.view(), w.view(), 1e-5, want.view(), {});
  EXPECT_TRUE(y.Tail().bytes() == want.bytes()) << "norm";

  const Buffer cos = Buffer::Random(DType::kF32, 16, 64, 3), sin = Buffer::Random(DType::kF32, 16, 64, 4);
  TestVector<int32_t> positions(static_cast<size_t>(kRows), 3);
  for (int32_t i = 0; i < kTail; ++i) positions[static_cast<size_t>(kRows - kTail + i)] = i + 7;
  Rope(*exec_, x.all(), kCols / 128, cos.view(), sin.view(), positions.data(), false);
  want = x_tail;
  Rope(*exec_, want.view(), kCols / 128, cos.view(), sin.view(), positions.data() + (kRows - kTail), false);
  EXPECT_TRUE(x.Tail().bytes() == want.bytes()) << "rope";
}

TEST_F(LargeTest, Nf4ReachesTheEnd) {
  const int64_t n = kRows * kCols;
  DeviceBuffer packed(n / 2), absmax(n / 64 * 4);
  const Buffer tail = Tail(1);
  const Large w(*exec_, tail), y(*exec_, tail);
  Nf4Weight whole;
  whole.out = kRows;
  whole.in = kCols;
  whole.packed = packed.as<uint8_t>();
  whole.absmax = absmax.as<float>();
  Nf4Quantize(*exec_, w.all(), whole);
  Nf4Dequantize(*exec_, whole, 0, y.all());

  TestVector<uint8_t> tail_packed(kTail * kCols / 2);
  TestVector<float> tail_absmax(kTail * kCols / 64);
  Nf4Weight alone = whole;
  alone.out = kTail;
  alone.packed = tail_packed.data();
  alone.absmax = tail_absmax.data();
  Buffer want(DType::kBF16, kTail, kCols);
  Nf4Quantize(*exec_, tail.view(), alone);
  Nf4Dequantize(*exec_, alone, 0, want.view());
  EXPECT_TRUE(y.Tail().bytes() == want.bytes());
}

}  // namespace
}  // namespace longhaul::kernels
