// Rows that lie more than 2^31 elements apart, which 32-bit index arithmetic would not reach, against the same rows in
// a small buffer. The memory between them is never touched, and so costs nothing. CUDA's: cuda_large_test.cc.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <memory>

#include "base/check.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kCols = 32;
constexpr int64_t kStride = (int64_t{1} << 30) + 64;  // the last row begins after 2^31

// [kRows, kCols] f32 of that stride.
class Sparse {
 public:
  explicit Sparse(const Buffer& values) {
    memory_ = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    LH_CHECK(memory_ != MAP_FAILED);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t col = 0; col < kCols; ++col) At(row, col) = static_cast<float>(values(row, col));
    }
  }
  ~Sparse() { ::munmap(memory_, kBytes); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;

  float& At(int64_t row, int64_t col) const { return static_cast<float*>(memory_)[row * kStride + col]; }
  Tensor view() const { return {memory_, DType::kF32, kRows, kCols, kStride}; }

 private:
  static constexpr size_t kBytes = static_cast<size_t>((kRows - 1) * kStride + kCols) * sizeof(float);
  void* memory_;
};

class LargeStrideTest : public testing::Test {
 protected:
  static Buffer Random(uint32_t seed) { return Buffer::Random(DType::kF32, kRows, kCols, seed); }
  static void ExpectSame(const Sparse& got, const Buffer& want, const char* what) {
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t col = 0; col < kCols; ++col) ASSERT_EQ(got.At(row, col), want(row, col)) << what << " " << row;
    }
  }
  std::unique_ptr<Exec> exec_ = MakeExec(2);
};

TEST_F(LargeStrideTest, ElementwiseOpsReachTheLastRow) {
  const Buffer a = Random(1), b = Random(2);
  const Sparse large_a(a), large_b(b), large_y(a);
  Buffer y = a;
  Add(*exec_, b.view(), y.view());
  Add(*exec_, large_b.view(), large_y.view());
  ExpectSame(large_y, y, "add");
  SwiGlu(*exec_, a.view(), b.view(), y.view());
  SwiGlu(*exec_, large_a.view(), large_b.view(), large_y.view());
  ExpectSame(large_y, y, "swiglu");
  Copy(*exec_, b.view(), y.view());
  Copy(*exec_, large_b.view(), large_y.view());
  ExpectSame(large_y, y, "copy");
  Dropout(*exec_, a.view(), 5, 7, 0.5, y.view());
  Dropout(*exec_, large_a.view(), 5, 7, 0.5, large_y.view());
  ExpectSame(large_y, y, "dropout");
  Zero(*exec_, large_y.view());
  Zero(*exec_, y.view());
  ExpectSame(large_y, y, "zero");
}

TEST_F(LargeStrideTest, NormsReachTheLastRow) {
  const Buffer x = Random(1), w = Buffer::Random(DType::kF32, 1, kCols, 2);
  const Sparse large_x(x), large_y(x);
  Buffer y = x, rstd(DType::kF32, kRows, 1), large_rstd(DType::kF32, kRows, 1);
  RmsNorm(*exec_, x.view(), w.view(), 1e-5, y.view(), rstd.view());
  RmsNorm(*exec_, large_x.view(), w.view(), 1e-5, large_y.view(), large_rstd.view());
  ExpectSame(large_y, y, "rms norm");
  EXPECT_TRUE(rstd.bytes() == large_rstd.bytes());
}

TEST_F(LargeStrideTest, RowsOfATableAreFoundAndPut) {
  const Buffer rows = Random(1);
  const Sparse table(rows);
  const int32_t ids[kRows] = {2, 0, 1};
  Buffer y(DType::kF32, kRows, kCols);
  GatherRows(*exec_, table.view(), ids, y.view());
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t col = 0; col < kCols; ++col) ASSERT_EQ(y(row, col), rows(ids[row], col)) << row;
  }
  const Sparse put(Random(3));
  ScatterRows(*exec_, y.view(), ids, put.view());
  ExpectSame(put, rows, "scatter");
}

TEST_F(LargeStrideTest, ProductsReachTheLastRow) {
  const Buffer a = Random(1), b = Random(2);
  const Sparse large_a(a), large_b(b), large_c(a);
  Buffer c = a;
  const Buffer square = Buffer::Random(DType::kF32, kCols, kCols, 3);
  Gemm(*exec_, false, false, 1, a.view(), square.view(), 0, c.view());
  Gemm(*exec_, false, false, 1, large_a.view(), square.view(), 0, large_c.view());
  // The same library may take another path for another stride; sums of 32 products.
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t col = 0; col < kCols; ++col) ASSERT_NEAR(large_c.At(row, col), c(row, col), 1e-5) << row;
  }
  Buffer small(DType::kF32, kCols, kCols), large(DType::kF32, kCols, kCols);
  Gemm(*exec_, true, false, 1, a.view(), b.view(), 0, small.view());
  Gemm(*exec_, true, false, 1, large_a.view(), large_b.view(), 0, large.view());
  for (int64_t row = 0; row < kCols; ++row) {
    for (int64_t col = 0; col < kCols; ++col) ASSERT_NEAR(large(row, col), small(row, col), 1e-5) << row;
  }
}

}  // namespace
}  // namespace longhaul::kernels
