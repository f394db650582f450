// LoRA beside a frozen product. In bf16 both are one pass over blocks of rows (packed_gemm.h, LowRankFold): the rows
// are rounded once, and the small products run in bf16 on what is still in the cache. In f32 and f64 they are GEMMs one
// after the other.
#include "base/check.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/packed_gemm.h"

namespace longhaul::kernels::cpu {
namespace {

// A and the B's of an adapter, rounded: dense, in this order.
class RoundedFactors {
 public:
  RoundedFactors(const Exec& exec, const LoraFactors& lora) {
    LH_CHECK(lora.rounded != nullptr);
    next_ = static_cast<uint16_t*>(lora.rounded);
    a_ = Round(exec, lora.a);
    for (int64_t i = 0; i < lora.count; ++i) b_[i] = Round(exec, lora.parts[i].b);
  }
  const uint16_t* a() const { return a_; }
  const uint16_t* b(int64_t i) const { return b_[i]; }

 private:
  const uint16_t* Round(const Exec& exec, const Tensor& x) {
    uint16_t* const to = next_;
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) RoundRow(x.as<float>() + i * x.stride, to + i * x.cols, x.cols);
    });
    next_ += x.rows * x.cols;
    return to;
  }

  uint16_t* next_ = nullptr;
  const uint16_t* a_ = nullptr;
  const uint16_t* b_[kMaxLoraParts] = {};
};

bool Folds(const FrozenWeight& w) { return w.packed && w.dtype == DType::kBF16; }

void GemmOfType(const Exec& exec, bool transpose_b, double alpha, const Tensor& a, const Tensor& b, double beta,
                const Tensor& c) {
  (c.dtype == DType::kF64 ? GemmF64 : Gemm)(exec, false, transpose_b, alpha, a, b, beta, c);
}

// Part i's columns of u or v.
Tensor Columns(const LoraFactors& lora, const Tensor& t, int64_t i) {
  return t.Cols(i * lora.rank, (i + 1) * lora.rank);
}

}  // namespace

void LoraForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, const LoraFactors& lora, double beta,
                 const Tensor& y, const Tensor& u, void* scratch) {
  if (Folds(w)) {
    const RoundedFactors rounded(exec, lora);
    LowRankFold fold;
    fold.t = u;
    fold.y_scale = lora.scale;
    fold.in_count = 1;
    fold.in[0] = {rounded.a(), true, w.in, u.cols, 0, 0};
    fold.out_count = lora.count;
    for (int64_t i = 0; i < lora.count; ++i) {
      const LoraFactors::Part& part = lora.parts[i];
      fold.out[i] = {rounded.b(i), true, lora.rank, part.b.rows, i * lora.rank, part.out_begin};
    }
    LibraryGemm(exec, x, w.forward, true, beta, y, scratch, &fold);
    return;
  }
  GemmOfType(exec, true, 1, x, lora.a, 0, u);
  if (y.data == nullptr) return;
  cpu::FrozenForward(exec, x, w, beta, y, scratch);
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraFactors::Part& part = lora.parts[i];
    GemmOfType(exec, true, lora.scale, Columns(lora, u, i), part.b, 1,
               y.Cols(part.out_begin, part.out_begin + part.b.rows));
  }
}

void LoraBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, const LoraFactors& lora, const Tensor& dx,
                  const Tensor& v, void* scratch) {
  if (Folds(w)) {
    const RoundedFactors rounded(exec, lora);
    LowRankFold fold;
    fold.t = v;
    fold.t_scale = lora.scale;
    fold.in_count = lora.count;
    for (int64_t i = 0; i < lora.count; ++i) {
      const LoraFactors::Part& part = lora.parts[i];
      fold.in[i] = {rounded.b(i), false, part.b.rows, lora.rank, part.out_begin, i * lora.rank};
    }
    fold.out_count = 1;
    fold.out[0] = {rounded.a(), false, v.cols, w.in, 0, 0};
    LibraryGemm(exec, dy, w.backward, true, 0, dx, scratch, &fold);
    return;
  }
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraFactors::Part& part = lora.parts[i];
    GemmOfType(exec, false, lora.scale, dy.Cols(part.out_begin, part.out_begin + part.b.rows), part.b, 0,
               Columns(lora, v, i));
  }
  if (dx.data == nullptr) return;
  cpu::FrozenBackward(exec, dy, w, 0, dx, scratch);
  GemmOfType(exec, false, 1, v, lora.a, 1, dx);
}

}  // namespace longhaul::kernels::cpu

namespace longhaul::kernels {

int64_t LoraFactorBytes(const LoraFactors& lora) {
  int64_t values = lora.a.rows * lora.a.cols;
  for (int64_t i = 0; i < lora.count; ++i) values += lora.parts[i].b.rows * lora.rank;
  return values * static_cast<int64_t>(sizeof(uint16_t));
}

}  // namespace longhaul::kernels
