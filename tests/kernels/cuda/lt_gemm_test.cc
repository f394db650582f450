// cuBLASLt products against a plain one in double.
#include "kernels/cuda/lt_gemm.h"

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/cuda_error.h"
#include "kernels/shapes/lora_fold.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = 32 << 20;

class LtGemmTest : public testing::Test {
 protected:
  LtGemmTest() : workspace_(kWorkspaceBytes) {
    auto created = LtGemm::Create(kWorkspaceBytes);
    EXPECT_TRUE(created.ok()) << created.status().message();
    gemm_ = *std::move(created);
  }
  GemmWorkspace workspace() const { return {workspace_.data(), kWorkspaceBytes}; }

  // Plans and runs; what was asked for is enough.
  template <typename C>
  void Run(const GemmShape& shape, float alpha, const void* a, const void* b, DeviceMatrix<C>* c,
           const float* a_scale = nullptr, const float* b_scale = nullptr) {
    const auto bytes = gemm_->Plan(shape);
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    gemm_->Run(stream_.get(), shape, alpha, {a, b, c->device(), a_scale, b_scale}, {workspace_.data(), *bytes});
    stream_.Synchronize();
    EXPECT_TRUE(c->Download()) << "something was written between the rows of " << GemmKey(shape);
  }

  Stream stream_;
  DeviceBytes workspace_;
  std::unique_ptr<LtGemm> gemm_;
};

// Sum and sum of magnitudes of the products that make an element: the tolerance follows from the second.
struct Products {
  double sum = 0, magnitude = 0;
};

template <typename T>
Products Sum(const GemmShape& s, const DeviceMatrix<T>& a, const DeviceMatrix<T>& b, int64_t i, int64_t j) {
  Products products;
  for (int64_t l = 0; l < s.k; ++l) {
    const double product = (s.transpose_a ? a(l, i) : a(i, l)) * (s.transpose_b ? b(j, l) : b(l, j));
    products.sum += product;
    products.magnitude += std::abs(product);
  }
  return products;
}

// bf16 products are exact in f32; each of k additions may round by 2^-24 of what was added so far; the result is
// rounded once to the output's type. Where C is added to, the library rounds the product to that type before.
double Tolerance(const GemmShape& s, const Products& products, double alpha, double held, double want) {
  const double sums =
      std::abs(alpha) * products.magnitude * static_cast<double>(s.k) * 0x1p-24 + std::abs(held) * 0x1p-23;
  if (s.output != GemmElement::kBF16) return sums + std::abs(want) * 0x1p-23;
  return sums + (std::abs(want) + (s.accumulate ? std::abs(alpha * products.sum) : 0)) * 0x1p-8;
}

template <typename C>
void TestProduct(const GemmShape& shape, float alpha, uint32_t seed,
                 const std::function<void(const void*, const void*, DeviceMatrix<C>*)>& run) {
  const auto a = BF16Matrix::Random(shape.transpose_a ? shape.k : shape.m, shape.transpose_a ? shape.m : shape.k,
                                    shape.a_stride, seed);
  const auto b = BF16Matrix::Random(shape.transpose_b ? shape.n : shape.k, shape.transpose_b ? shape.k : shape.n,
                                    shape.b_stride, seed + 1);
  auto c = DeviceMatrix<C>::Random(shape.m, shape.n, shape.c_stride, seed + 2);
  std::vector<double> held(static_cast<size_t>(shape.m * shape.n));
  for (int64_t i = 0; i < shape.m * shape.n; ++i) held[static_cast<size_t>(i)] = c(i / shape.n, i % shape.n);
  run(a.device(), b.device(), &c);
  const auto before = [&](int64_t i, int64_t j) {
    return shape.accumulate ? held[static_cast<size_t>(i * shape.n + j)] : 0.0;
  };
  const auto expected = [&](int64_t i, int64_t j) {
    return static_cast<double>(alpha) * Sum(shape, a, b, i, j).sum + before(i, j);
  };
  ExpectNear(
      c, expected,
      [&](int64_t i, int64_t j) {
        return Tolerance(shape, Sum(shape, a, b, i, j), static_cast<double>(alpha), before(i, j), expected(i, j));
      },
      GemmKey(shape));
}

struct Sizes {
  int64_t m, n, k;
};

TEST_F(LtGemmTest, EveryTransposeTypeAndAccumulation) {
  uint32_t seed = 1;
  for (const auto& [m, n, k] : {Sizes{128, 256, 64}, Sizes{8, 8, 8}, Sizes{40, 72, 136}, Sizes{16, 512, 1032}}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        for (const bool accumulate : {false, true}) {
          GemmShape shape{
              .transpose_a = transpose_a, .transpose_b = transpose_b, .accumulate = accumulate, .m = m, .n = n, .k = k};
          // Column ranges of wider matrices.
          shape.a_stride = (transpose_a ? m : k) + 24;
          shape.b_stride = (transpose_b ? k : n) + 8;
          shape.c_stride = n + 16;
          const float alpha = accumulate ? -0.5f : 1.0f;
          TestProduct<__nv_bfloat16>(shape, alpha, seed,
                                     [&](const void* a, const void* b, BF16Matrix* c) { Run(shape, alpha, a, b, c); });
          shape.output = GemmElement::kF32;
          TestProduct<float>(shape, alpha, seed,
                             [&](const void* a, const void* b, F32Matrix* c) { Run(shape, alpha, a, b, c); });
          seed += 3;
        }
      }
    }
  }
}

TEST_F(LtGemmTest, OddSizesAtLesserAlignment) {
  GemmShape shape{.transpose_b = true, .m = 7, .n = 13, .k = 33, .a_stride = 35, .b_stride = 33, .c_stride = 13};
  shape.alignment_bytes = 2;
  TestProduct<__nv_bfloat16>(shape, 1, 70,
                             [&](const void* a, const void* b, BF16Matrix* c) { Run(shape, 1, a, b, c); });
}

TEST_F(LtGemmTest, TimedChoiceComputesTheSame) {
  const GemmShape shape{
      .transpose_b = true, .m = 256, .n = 384, .k = 512, .a_stride = 512, .b_stride = 512, .c_stride = 384};
  TestProduct<__nv_bfloat16>(shape, 1, 80, [&](const void* a, const void* b, BF16Matrix* c) {
    const auto bytes = gemm_->PlanTimed(stream_.get(), shape, {a, b, c->device()}, workspace());
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    Run(shape, 1, a, b, c);
  });
  EXPECT_NE(gemm_->Describe(shape).find("algo "), std::string::npos);
}

TEST_F(LtGemmTest, RepeatedRunsGiveTheSameBits) {
  // Few tiles and a long k: split along k.
  const GemmShape shape{
      .output = GemmElement::kF32, .m = 64, .n = 128, .k = 16384, .a_stride = 16384, .b_stride = 128, .c_stride = 128};
  const auto a = BF16Matrix::Random(64, 16384, 16384, 5);
  const auto b = BF16Matrix::Random(16384, 128, 128, 6);
  F32Matrix first(64, 128, 128), second(64, 128, 128);
  Run(shape, 1, a.device(), b.device(), &first);
  Run(shape, 1, a.device(), b.device(), &second);
  EXPECT_TRUE(first.bytes() == second.bytes()) << gemm_->Describe(shape);
}

TEST_F(LtGemmTest, SavedChoicesAreRestoredToTheBit) {
  const GemmShape shape{
      .transpose_b = true, .m = 512, .n = 768, .k = 2048, .a_stride = 2048, .b_stride = 2048, .c_stride = 768};
  const auto a = BF16Matrix::Random(512, 2048, 2048, 7);
  const auto b = BF16Matrix::Random(768, 2048, 2048, 8);
  BF16Matrix first(512, 768, 768), second(512, 768, 768);
  ASSERT_TRUE(gemm_->PlanTimed(stream_.get(), shape, {a.device(), b.device(), first.device()}, workspace()).ok());
  Run(shape, 1, a.device(), b.device(), &first);
  const std::string saved = gemm_->Save();

  auto other = LtGemm::Create(kWorkspaceBytes);
  ASSERT_TRUE(other.ok());
  const absl::Status restored = (*other)->Restore(saved);
  ASSERT_TRUE(restored.ok()) << restored.message();
  EXPECT_EQ((*other)->Save(), saved);
  EXPECT_EQ((*other)->Describe(shape), gemm_->Describe(shape));
  EXPECT_EQ((*other)->workspace_bytes(), gemm_->workspace_bytes());
  gemm_ = *std::move(other);
  Run(shape, 1, a.device(), b.device(), &second);
  EXPECT_TRUE(first.bytes() == second.bytes());
}

TEST_F(LtGemmTest, ChoicesOfAnotherLibraryAreRefused) {
  ASSERT_TRUE(gemm_->Plan({.m = 64, .n = 64, .k = 64, .a_stride = 64, .b_stride = 64, .c_stride = 64}).ok());
  const std::string saved = gemm_->Save();
  const std::string lines = saved.substr(saved.find('\n'));
  EXPECT_EQ(ErrorReason(gemm_->Restore("cublasLt 12.0.1 on Some Card" + lines)), "GEMM_ALGORITHMS_CHANGED");
  for (const std::string& text : {std::string(), std::string("nonsense"), saved + "bf16>bf16 NN m64 = 1 2\n",
                                  saved.substr(0, saved.size() - 3) + "zz\n"}) {
    EXPECT_EQ(gemm_->Restore(text).code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST_F(LtGemmTest, ARefusedShapeIsNamed) {
  GemmShape shape{.m = 64, .n = 64, .k = 64, .a_stride = 63, .b_stride = 64, .c_stride = 64};
  EXPECT_EQ(gemm_->Plan(shape).status().code(), absl::StatusCode::kInvalidArgument);
}

// Between BeginPlanning and EndPlanning nothing is run, and what is refused is told at the end, not thrown.
TEST_F(LtGemmTest, PlanningChoosesAndDoesNotRun) {
  const GemmShape good{.m = 64, .n = 64, .k = 64, .a_stride = 64, .b_stride = 64, .c_stride = 64};
  GemmShape refused = good, refused_too = good;
  refused.m = -1;
  refused_too.n = -1;
  gemm_->BeginPlanning();
  for (const GemmShape& shape : {good, refused, refused_too, good}) {
    gemm_->PlanAndRun(stream_.get(), shape, 1, {}, workspace());  // no operands: running it would end in an error
  }
  EXPECT_EQ(gemm_->planned_shapes(), 1);
  const absl::Status status = gemm_->EndPlanning();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status, gemm_->Plan(refused).status());
  stream_.Synchronize();
  EXPECT_THROW(gemm_->PlanAndRun(stream_.get(), refused, 1, {}, workspace()), CudaError);
  gemm_->BeginPlanning();
  EXPECT_TRUE(gemm_->EndPlanning().ok());
}

// Scales of rows: element (i, j) is a_scale[i] * b_scale[j] * sum of stored products.
TEST_F(LtGemmTest, Fp8WithScales) {
  const auto scale = gemm_->BestFp8Scale();
  if (!scale.ok()) GTEST_SKIP() << scale.status().message();
  const bool rows = *scale == GemmScale::kRow;
  GemmShape shape{.transpose_b = true,
                  .input = GemmElement::kE4M3,
                  .scale = *scale,
                  .m = 256,
                  .n = 384,
                  .k = 512,
                  .a_stride = 528,
                  .b_stride = 512,
                  .c_stride = 400};
  const auto a = DeviceMatrix<__nv_fp8_e4m3>::Random(shape.m, shape.k, shape.a_stride, 1, 8);
  const auto b = DeviceMatrix<__nv_fp8_e4m3>::Random(shape.n, shape.k, shape.b_stride, 2, 8);
  auto a_scale = F32Matrix::Random(1, rows ? shape.m : 1, rows ? shape.m : 1, 3);
  auto b_scale = F32Matrix::Random(1, rows ? shape.n : 1, rows ? shape.n : 1, 4);
  for (const bool fast : {false, true}) {
    shape.fast_accumulation = fast;
    BF16Matrix c(shape.m, shape.n, shape.c_stride);
    Run(shape, 1, a.device(), b.device(), &c, a_scale.device(), b_scale.device());
    const auto factor = [&](int64_t i, int64_t j) { return a_scale(0, rows ? i : 0) * b_scale(0, rows ? j : 0); };
    const auto expected = [&](int64_t i, int64_t j) { return factor(i, j) * Sum(shape, a, b, i, j).sum; };
    // Fast sums keep 14 bits of the largest: 2^-13 an addition of a 32-wide group; promoted ones of 4 groups at a time.
    const double steps = static_cast<double>(shape.k) / 32 * 0x1p-13;
    ExpectNear(
        c, expected,
        [&](int64_t i, int64_t j) {
          return std::abs(factor(i, j)) * Sum(shape, a, b, i, j).magnitude * steps + std::abs(expected(i, j)) * 0x1p-8;
        },
        GemmKey(shape));
  }
}

// A linear with its adapter, folded three ways, against W and s B A in double.
class LoraFoldOnDevice : public LtGemmTest, public testing::WithParamInterface<int64_t> {};

TEST_P(LoraFoldOnDevice, ForwardsAgree) {
  const int64_t rows = 48, out = 96, in = 64, rank = GetParam();
  const LoraFold fold = MakeLoraFold(out, in, rank);
  auto weight = BF16Matrix::Random(out + rank, in + rank, fold.weight_stride, 1);
  // What the fold says is never read.
  for (int64_t i = out; i < out + rank; ++i) {
    for (int64_t j = in; j < in + rank; ++j) weight(i, j) = std::numeric_limits<double>::quiet_NaN();
  }
  weight.Upload();
  auto x = BF16Matrix::Random(rows, in, fold.x_stride, 2);
  const auto at = [](const BF16Matrix& matrix, int64_t offset) { return matrix.device() + offset; };
  const auto run = [&](const GemmShape& shape, const void* a, const void* b, void* c) {
    const auto bytes = gemm_->Plan(shape);
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    gemm_->Run(stream_.get(), shape, 1, {a, b, c}, workspace());
    stream_.Synchronize();
  };
  run(LoraDown(fold, rows), x.device(), at(weight, fold.a_offset()), x.device() + fold.u_offset());
  BF16Matrix k_way(rows, out, fold.y_stride), separate(rows, out, fold.y_stride),
      n_way(rows, out + rank, fold.y_stride);
  run(LoraKForward(fold, rows), x.device(), weight.device(), k_way.device());
  run(LoraNForward(fold, rows), x.device(), weight.device(), n_way.device());
  run(LoraBaseForward(fold, rows), x.device(), weight.device(), separate.device());
  run(LoraUpAdd(fold, rows), x.device() + fold.u_offset(), at(weight, fold.sb_offset()), separate.device());
  EXPECT_TRUE(k_way.Download() && separate.Download() && n_way.Download());

  struct Parts {
    double base = 0, branch = 0, magnitude = 0;
  };
  const auto parts = [&](int64_t i, int64_t j) {
    Parts p;
    for (int64_t l = 0; l < in; ++l) {
      p.base += x(i, l) * weight(j, l);
      p.magnitude += std::abs(x(i, l) * weight(j, l));
    }
    for (int64_t r = 0; r < rank; ++r) {
      double u = 0;
      for (int64_t l = 0; l < in; ++l) u += x(i, l) * weight(out + r, l);
      p.branch += u * weight(j, in + r);
      p.magnitude += std::abs(u * weight(j, in + r));
    }
    return p;
  };
  const auto whole = [&](int64_t i, int64_t j) { return parts(i, j).base + parts(i, j).branch; };
  // u is rounded to bf16 (2^-8 of it), the result once more; separate: the base before the branch is added too.
  const auto near = [&](int64_t i, int64_t j) { return parts(i, j).magnitude * 0x1p-8 * 3; };
  ExpectNear(k_way, whole, near, "K-augmented");
  ExpectNear(separate, whole, near, "separate");
  ExpectNear(
      n_way,
      [&](int64_t i, int64_t j) {
        double sum = 0;
        for (int64_t l = 0; l < in; ++l) sum += x(i, l) * weight(j, l);
        return sum;
      },
      [&](int64_t i, int64_t j) {
        double magnitude = 0;
        for (int64_t l = 0; l < in; ++l) magnitude += std::abs(x(i, l) * weight(j, l));
        return magnitude * 0x1p-8;
      },
      "N-augmented");
}

INSTANTIATE_TEST_SUITE_P(Ranks, LoraFoldOnDevice, testing::Values<int64_t>(8, 16, 40));

}  // namespace
}  // namespace longhaul::kernels::cuda
