// A linear from NF4 with its adapter against W and B A in double.
#include "kernels/cuda/nf4_linear.h"

#include <memory>
#include <vector>

#include "base/nf4.h"
#include "kernels/cuda/cuda_exec.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kGemmBytes = 16 << 20;
constexpr int64_t kIn = 96, kRows = 40;

// A weight of one of the stacked linears: NF4 on the device, its values in double.
struct Weight {
  Weight(int64_t out, uint32_t seed)
      : packed(Nf4PackedBytes(out * kIn)),
        absmax(Nf4Blocks(out * kIn, 64) * 4),
        values(static_cast<size_t>(out * kIn)) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, 0.05f);
    std::vector<float> w(values.size()), back(values.size()), scales(static_cast<size_t>(Nf4Blocks(out * kIn, 64)));
    std::vector<uint8_t> codes(static_cast<size_t>(packed.bytes()));
    for (float& value : w) value = normal(generator);
    EXPECT_TRUE(QuantizeNf4(w.data(), out * kIn, 64, codes.data(), scales.data()).ok());
    DequantizeNf4(codes.data(), scales.data(), 0, out * kIn, 64, back.data());
    for (size_t i = 0; i < values.size(); ++i) values[i] = ToDouble(__nv_bfloat16(back[i]));
    packed.Upload(codes.data(), packed.bytes());
    absmax.Upload(scales.data(), absmax.bytes());
    nf4.out = out;
    nf4.in = kIn;
    nf4.packed = packed.as<uint8_t>();
    nf4.absmax = absmax.as<float>();
  }
  DeviceBytes packed, absmax;
  std::vector<double> values;
  Nf4Weight nf4;
};

class Nf4LinearTest : public testing::Test {
 protected:
  // Three stacked linears of ranks that need padding, the second without an adapter.
  Nf4LinearTest()
      : weights{Weight(64, 1), Weight(16, 2), Weight(48, 3)},
        a0(F32Matrix::Random(12, kIn, kIn, 4, 0.1)),
        b0(F32Matrix::Random(64, 12, 12, 5, 0.1)),
        a2(F32Matrix::Random(8, kIn, kIn, 6, 0.1)),
        b2(F32Matrix::Random(48, 8, 8, 7, 0.1)),
        parts{{a0.device(), b0.device(), 12, 64, 1.5f},
              {nullptr, nullptr, 0, 16, 1.5f},
              {a2.device(), b2.device(), 8, 48, 0.7f}},
        x(1, 1, 1) {
    auto created = Exec::CreateCuda(0);
    EXPECT_TRUE(created.ok()) << created.status().message();
    exec = *std::move(created);
    auto library = LtGemm::Create(kGemmBytes);
    EXPECT_TRUE(library.ok()) << library.status().message();
    gemm = *std::move(library);
    linear.fold = MakeLoraFold(128, kIn, PaddedRank(parts));
    for (const Weight& weight : weights) linear.quantised.push_back(weight.nf4);
    x = BF16Matrix::Random(kRows, kIn, linear.fold.x_stride, 8);
  }

  GemmWorkspace workspace() { return {scratch.data(), kGemmBytes}; }
  cudaStream_t stream() const { return exec->cuda().compute.get(); }
  void Multiply(const GemmShape& shape, const void* a, const void* b, void* c) {
    const auto bytes = gemm->Plan(shape);
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    gemm->Run(stream(), shape, 1, {a, b, c}, workspace());
  }

  double W(int64_t i, int64_t j) const {
    for (const Weight& weight : weights) {
      if (i < weight.nf4.out) return weight.values[static_cast<size_t>(i * kIn + j)];
      i -= weight.nf4.out;
    }
    return 0;
  }
  // s B A of a row, from the masters.
  double Branch(int64_t i, int64_t j) const {
    double sum = 0;
    if (i < 64) {
      for (int64_t r = 0; r < 12; ++r) sum += 1.5 * b0(i, r) * a0(r, j);
    } else if (i >= 80) {
      for (int64_t r = 0; r < 8; ++r) sum += 0.7 * b2(i - 80, r) * a2(r, j);
    }
    return sum;
  }
  void CheckForward(BF16Matrix* y) {
    exec->Synchronize();
    EXPECT_TRUE(y->Download());
    const auto expected = [&](int64_t i, int64_t j) {
      double sum = 0;
      for (int64_t l = 0; l < kIn; ++l) sum += x(i, l) * (W(j, l) + Branch(j, l));
      return sum;
    };
    // A, sB and u are rounded to bf16: three times 2^-8 of the branch's terms; the sum at the end 2^-8 of all.
    const auto near = [&](int64_t i, int64_t j) {
      double base = 0, branch = 0;
      for (int64_t l = 0; l < kIn; ++l) {
        base += std::abs(x(i, l) * W(j, l));
        for (int64_t r = 0; r < 12; ++r) {
          if (j < 64) branch += std::abs(x(i, l) * 1.5 * b0(j, r) * a0(r, l));
          if (j >= 80 && r < 8) branch += std::abs(x(i, l) * 0.7 * b2(j - 80, r) * a2(r, l));
        }
      }
      return base * 0x1p-8 + branch * 4 * 0x1p-8 + 1e-6;
    };
    ExpectNear(*y, expected, near, "y");
  }

  std::unique_ptr<Exec> exec;
  std::unique_ptr<LtGemm> gemm;
  Weight weights[3];
  F32Matrix a0, b0, a2, b2;
  std::vector<AdapterPart> parts;
  FrozenLinear linear;
  BF16Matrix x;
  DeviceBytes scratch{kGemmBytes};
};

TEST_F(Nf4LinearTest, DequantisedOrCachedTheForwardIsTheFormula) {
  const LoraFold& fold = linear.fold;
  EXPECT_EQ(fold.rank, 24);
  for (const bool cached : {false, true}) {
    DeviceBytes weight(fold.weight_bytes()), buffer(fold.weight_bytes());
    if (cached) {
      FillWeight(*exec, linear, weight.data());
      linear.cache = weight.data();
    }
    const void* const ready = PrepareWeight(*exec, linear, parts, buffer.data());
    EXPECT_EQ(ready, cached ? weight.data() : buffer.data());
    const auto* const at = static_cast<const __nv_bfloat16*>(ready);
    Multiply(LoraDown(fold, kRows), x.device(), at + fold.a_offset(), x.device() + fold.u_offset());
    BF16Matrix y(kRows, fold.out, fold.y_stride);
    Multiply(LoraKForward(fold, kRows), x.device(), ready, y.device());
    CheckForward(&y);
  }
}

TEST_F(Nf4LinearTest, TiledForwardIsTheFormulaToo) {
  const LoraFold& fold = linear.fold;
  DeviceBytes whole(fold.weight_bytes());
  PlaceAdapter(*exec, fold, parts, whole.data());
  Multiply(LoraDown(fold, kRows), x.device(), whole.as<__nv_bfloat16>() + fold.a_offset(),
           x.device() + fold.u_offset());
  // Tiles that lie across the stacked linears.
  for (const int64_t tile_out : {32, 128}) {
    DeviceBytes tile(tile_out * fold.weight_stride * 2);
    const auto bytes = gemm->Plan(TiledForwardGemm(fold, kRows, tile_out));
    ASSERT_TRUE(bytes.ok());
    BF16Matrix y(kRows, fold.out, fold.y_stride);
    TiledForward(*exec, *gemm, linear, parts, kRows, tile_out, x.device(), y.device(), tile.data(), workspace());
    CheckForward(&y);
  }
}

TEST_F(Nf4LinearTest, BackwardIsTheFormula) {
  const LoraFold& fold = linear.fold;
  DeviceBytes buffer(fold.weight_bytes());
  const auto* const weight = static_cast<const __nv_bfloat16*>(PrepareWeight(*exec, linear, parts, buffer.data()));
  auto dy = BF16Matrix::Random(kRows, fold.out, fold.y_stride, 9);
  Multiply(LoraBackwardDown(fold, kRows), dy.device(), weight + fold.sb_offset(), dy.device() + fold.v_offset());
  BF16Matrix dx(kRows, kIn, fold.dx_stride);
  Multiply(LoraKBackward(fold, kRows), dy.device(), weight, dx.device());
  exec->Synchronize();
  EXPECT_TRUE(dx.Download());
  ExpectNear(
      dx,
      [&](int64_t i, int64_t j) {
        double sum = 0;
        for (int64_t l = 0; l < fold.out; ++l) sum += dy(i, l) * (W(l, j) + Branch(l, j));
        return sum;
      },
      [&](int64_t i, int64_t j) {
        double base = 0, branch = 0;
        for (int64_t l = 0; l < fold.out; ++l) {
          base += std::abs(dy(i, l) * W(l, j));
          for (int64_t r = 0; r < 12; ++r) {
            if (l < 64) branch += std::abs(dy(i, l) * 1.5 * b0(l, r) * a0(r, j));
            if (l >= 80 && r < 8) branch += std::abs(dy(i, l) * 0.7 * b2(l - 80, r) * a2(r, j));
          }
        }
        return base * 0x1p-8 + branch * 4 * 0x1p-8 + 1e-6;
      },
      "dx");
}

}  // namespace
}  // namespace longhaul::kernels::cuda
