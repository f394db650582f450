// The library's blocks, and the choice between them and panels.
//
// Rows go through primitives of fixed sizes (128, and 64 and 16 for what is left or where there are few), the last rows
// padded, so there are at most six primitives a shape, all made on one thread's account, and a row's bits do not depend
// on the call it is in. Our own threads run the blocks, each with a scratchpad of its own (the library's primitives are
// thread-safe then). Source: oneDNN 2.6 developer guide, "Matrix Multiplication" and "Primitive Attributes:
// Scratchpad".
#include "kernels/cpu/packed_gemm.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels {
namespace cpu {
namespace {

using dnnl::memory;
using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;

// Every block streams the whole weight, so the larger the better; the smaller ones are for what is left.
constexpr int64_t kBlockRows[] = {128, 64, 16};
constexpr int64_t kBigBlock = kBlockRows[0];
constexpr int64_t kSmallBlock = kBlockRows[2];
constexpr int kBlockSizes = 3;
// Longer sums than this the library cuts by the number of rows (seen with AMX at 49,152): there every block has the
// middle size, so that a row's bits still do not depend on its call.
constexpr int64_t kLongestFreeSum = 4096;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Restores the library's thread count: primitives are made for one thread, because each runs on one of ours.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

memory::desc PlainDesc(int64_t rows, int64_t cols, Type type) { return memory::desc({rows, cols}, type, Tag::ab); }

dnnl::primitive_attr Attributes(bool accumulate) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  return attributes;
}

dnnl::matmul::primitive_desc Describe(const dnnl::engine& engine, const PackedKey& key, const memory::desc& weights) {
  const Type operand = key.bf16 ? Type::bf16 : Type::f32;
  const dnnl::matmul::desc operation(PlainDesc(key.rows, key.k, operand), weights,
                                     PlainDesc(key.rows, key.n, Type::f32));
  return dnnl::matmul::primitive_desc(operation, Attributes(key.accumulate), engine);
}

memory::desc AnyWeights(const PackedKey& key) {
  return memory::desc({key.k, key.n}, key.bf16 ? Type::bf16 : Type::f32, Tag::any);
}

std::unique_ptr<PackedPrimitive> Make(CpuExec& state, const dnnl::matmul::primitive_desc& described) {
  auto entry = std::make_unique<PackedPrimitive>();
  entry->weights = described.weights_desc();
  entry->matmul = dnnl::matmul(described);
  for (CpuExec::Thread& thread : state.threads) {
    thread.scratchpad.Reserve(static_cast<int64_t>(described.scratchpad_desc().get_size()));
    entry->threads.push_back({memory(described.src_desc(), state.engine, nullptr),
                              memory(entry->weights, state.engine, nullptr),
                              memory(described.dst_desc(), state.engine, nullptr),
                              memory(described.scratchpad_desc(), state.engine, nullptr)});
  }
  return entry;
}

const PackedPrimitive& Find(CpuExec& state, const PackedKey& key) {
  const auto found = state.packed.find(key);
  if (found != state.packed.end()) return *found->second;
  // The layout is the one chosen for big blocks without accumulation; every other primitive of the shape reads it.
  const PackedKey first{kBigBlock, key.k, key.n, key.bf16, false};
  const memory::desc weights = key == first ? AnyWeights(key) : Find(state, first).weights;
  const OneThread one_thread;
  const dnnl::matmul::primitive_desc described = Describe(state.engine, key, weights);  // throws for what it cannot do
  return *state.packed.emplace(key, Make(state, described)).first->second;
}

const PackedPrimitive& FindFactor(CpuExec& state, const FactorKey& key) {
  const auto found = state.factors.find(key);
  if (found != state.factors.end()) return *found->second;
  const memory::desc source({key.rows, key.k}, Type::bf16, memory::dims{key.source_stride, 1});
  const memory::desc weights({key.k, key.n}, Type::bf16, key.transposed ? Tag::ba : Tag::ab);
  const memory::desc destination({key.rows, key.n}, Type::f32, memory::dims{key.destination_stride, 1});
  const OneThread one_thread;
  const dnnl::matmul::primitive_desc described(dnnl::matmul::desc(source, weights, destination),
                                               Attributes(key.accumulate), state.engine);
  return *state.factors.emplace(key, Make(state, described)).first->second;
}

// One of our threads and what it has of its own.
struct Worker {
  CpuExec::Thread& own;
  size_t number;
};

void Run(const PackedPrimitive& primitive, const Worker& worker, const void* source, const void* weights,
         float* destination) {
  const PackedPrimitive::Arguments& held = primitive.threads[worker.number];
  held.source.set_data_handle(const_cast<void*>(source));
  held.weights.set_data_handle(const_cast<void*>(weights));
  held.destination.set_data_handle(destination);
  held.scratchpad.set_data_handle(worker.own.scratchpad.as<void>());
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, held.source.get()},
                                       {DNNL_ARG_WEIGHTS, held.weights.get()},
                                       {DNNL_ARG_DST, held.destination.get()},
                                       {DNNL_ARG_SCRATCHPAD, held.scratchpad.get()}};
  const dnnl_status_t status = dnnl_primitive_execute(primitive.matmul.get(), worker.own.stream.get(), 4, arguments);
  LH_CHECK(status == dnnl_success, "dnnl_primitive_execute: " + std::to_string(status));
}

// Which rows a task works on, and with which size of block.
struct Block {
  int64_t row, rows, padded_rows;
  int size;
};

// Rows cut into blocks: as many as possible of the largest size that gives every thread one, then of the next.
class BlockCut {
 public:
  BlockCut(int64_t rows, int64_t sum, int threads) : rows_(rows) {
    if (sum > kLongestFreeSum) {
      counts_[1] = RoundUp(rows, kBlockRows[1]) / kBlockRows[1];
      return;
    }
    int64_t left = rows;
    bool any = false;
    for (int size = 0; size + 1 < kBlockSizes; ++size) {
      any = any || rows >= kBlockRows[size] * threads;
      counts_[size] = any ? left / kBlockRows[size] : 0;
      left -= counts_[size] * kBlockRows[size];
    }
    counts_[kBlockSizes - 1] = RoundUp(left, kSmallBlock) / kSmallBlock;
  }

  int64_t blocks() const { return counts_[0] + counts_[1] + counts_[2]; }
  Block at(int64_t task) const {
    int64_t row = 0;
    int size = 0;
    for (; task >= counts_[size]; ++size) {
      task -= counts_[size];
      row += counts_[size] * kBlockRows[size];
    }
    row += task * kBlockRows[size];
    return {row, std::min(kBlockRows[size], rows_ - row), kBlockRows[size], size};
  }

 private:
  int64_t rows_;
  int64_t counts_[kBlockSizes] = {};
};

// The block's rows of x as the primitive wants them: dense, of its type, padded with zeros.
const void* StageSource(const Tensor& x, const Block& block, bool bf16, float* staging, void* scratch) {
  const float* const from = x.as<float>() + block.row * x.stride;
  if (bf16) {
    uint16_t* const to = static_cast<uint16_t*>(scratch) + block.row * x.cols;
    for (int64_t i = 0; i < block.rows; ++i) RoundRow(from + i * x.stride, to + i * x.cols, x.cols);
    std::fill(to + block.rows * x.cols, to + block.padded_rows * x.cols, uint16_t{0});
    return to;
  }
  if (block.rows == block.padded_rows && x.contiguous()) return from;
  for (int64_t i = 0; i < block.rows; ++i) {
    std::memcpy(staging + i * x.cols, from + i * x.stride, static_cast<size_t>(x.cols) * sizeof(float));
  }
  std::fill(staging + block.rows * x.cols, staging + block.padded_rows * x.cols, 0.0f);
  return staging;
}

void CopyRows(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride, static_cast<size_t>(cols) * sizeof(float));
  }
}

// The primitives of a fold's factors, by size of block.
struct FoldPrimitives {
  const PackedPrimitive* in[kBlockSizes][kMaxLoraParts];
  const PackedPrimitive* out[kBlockSizes][kMaxLoraParts];
};

FoldPrimitives FindFold(CpuExec& state, const LowRankFold& fold, int64_t x_cols, int64_t y_cols) {
  FoldPrimitives found{};
  for (int size = 0; size < kBlockSizes; ++size) {
    for (int64_t i = 0; i < fold.in_count; ++i) {
      const SmallFactor& f = fold.in[i];
      found.in[size][i] =
          &FindFactor(state, FactorKey{kBlockRows[size], f.k, f.n, x_cols, fold.t.cols, f.transposed, false});
    }
    for (int64_t i = 0; y_cols > 0 && i < fold.out_count; ++i) {
      const SmallFactor& f = fold.out[i];
      found.out[size][i] =
          &FindFactor(state, FactorKey{kBlockRows[size], f.k, f.n, fold.t.cols, y_cols, f.transposed, true});
    }
  }
  return found;
}

// A block of t in f32, and rounded.
int64_t FoldStagingBytes(const LowRankFold& fold) {
  return kBigBlock * fold.t.cols * static_cast<int64_t>(sizeof(float) + sizeof(uint16_t));
}

void ScaleValues(float* x, double scale, int64_t n) {
  if (scale == 1) return;
  for (int64_t i = 0; i < n; ++i) x[i] *= static_cast<float>(scale);
}

// The block's rows of t: into `staging`, and those that are no padding into fold.t.
void FoldIn(const LowRankFold& fold, const FoldPrimitives& primitives, const Block& block, const void* source,
            const Worker& worker, float* staging) {
  const int64_t cols = fold.t.cols;
  for (int64_t i = 0; i < fold.in_count; ++i) {
    const SmallFactor& f = fold.in[i];
    Run(*primitives.in[block.size][i], worker, static_cast<const uint16_t*>(source) + f.from, f.values, staging + f.to);
  }
  ScaleValues(staging, fold.t_scale, block.padded_rows * cols);
  CopyRows(staging, cols, fold.t.as<float>() + block.row * fold.t.stride, fold.t.stride, block.rows, cols);
}

// Adds what the block of t gives to the block of y. REQUIRES: FoldIn of the block before; `staging` is overwritten.
void FoldOut(const LowRankFold& fold, const FoldPrimitives& primitives, const Block& block, const Worker& worker,
             float* staging, float* y) {
  const int64_t values = block.padded_rows * fold.t.cols;
  auto* const rounded = reinterpret_cast<uint16_t*>(staging + kBigBlock * fold.t.cols);
  ScaleValues(staging, fold.y_scale, values);
  RoundRow(staging, rounded, values);
  for (int64_t i = 0; i < fold.out_count; ++i) {
    const SmallFactor& f = fold.out[i];
    Run(*primitives.out[block.size][i], worker, rounded + f.from, f.values, y + f.to);
  }
}

const memory::desc& BlocksDesc(CpuExec& state, int64_t k, int64_t n, bool bf16) {
  return Find(state, {kBigBlock, k, n, bf16, false}).weights;
}

bool LibraryPacksF32() {
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const PackedKey key{kBigBlock, 576, 576, false, false};
  const memory::desc weights = Describe(engine, key, AnyWeights(key)).weights_desc();
  return weights != PlainDesc(key.k, key.n, Type::f32) && weights != memory::desc({key.k, key.n}, Type::f32, Tag::ba);
}

}  // namespace

LONGHAUL_SIMD void RoundRow(const float* x, uint16_t* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = ToBf16(x[i]);
}

int64_t LibraryBytes(const Exec& exec, int64_t k, int64_t n, bool bf16) {
  const auto bytes = static_cast<int64_t>(BlocksDesc(exec.cpu(), k, n, bf16).get_size());
  const int64_t bound = RoundUp(k, 64) * RoundUp(n, 64) * (bf16 ? 2 : 4);
  LH_CHECK(bytes <= bound, std::to_string(bytes) + " bytes packed, the plan has " + std::to_string(bound));
  return bytes;
}

void PackLibrary(const Exec& exec, const Tensor& rows, bool backward, bool bf16, void* blocks) {
  CpuExec& state = exec.cpu();
  const int64_t k = backward ? rows.rows : rows.cols;
  const int64_t n = backward ? rows.cols : rows.rows;
  memory source({{k, n}, Type::f32, backward ? Tag::ab : Tag::ba}, state.engine, rows.data);
  memory destination(BlocksDesc(state, k, n, bf16), state.engine, blocks);
  dnnl::stream& stream = state.threads[0].stream;
  dnnl::reorder(source, destination).execute(stream, source, destination);
  stream.wait();
}

void LibraryGemm(const Exec& exec, const Tensor& x, void* blocks, bool bf16, double beta, const Tensor& y,
                 void* scratch, const LowRankFold* fold) {
  LH_CHECK(fold == nullptr || bf16);
  CpuExec& state = exec.cpu();
  const bool accumulate = beta != 0;
  const bool has_y = y.data != nullptr;
  const int64_t y_cols = has_y ? y.cols : 0;
  const PackedPrimitive* primitives[kBlockSizes] = {};
  for (int i = 0; has_y && i < kBlockSizes; ++i) {
    primitives[i] = &Find(state, {kBlockRows[i], x.cols, y.cols, bf16, accumulate});
  }
  const FoldPrimitives folded = fold != nullptr ? FindFold(state, *fold, x.cols, y_cols) : FoldPrimitives{};
  const int64_t staged_bytes = kBigBlock * (x.cols + y_cols) * static_cast<int64_t>(sizeof(float));
  for (CpuExec::Thread& thread : state.threads) {
    thread.staging.Reserve(staged_bytes + (fold != nullptr ? FoldStagingBytes(*fold) : 0));
  }

  const BlockCut cut(x.rows, x.cols, exec.threads());
  ParallelTasks(exec, cut.blocks(), [&](int64_t task, int thread) {
    const Block block = cut.at(task);
    CpuExec::Thread& own = state.threads[static_cast<size_t>(thread)];
    float* const source_staging = own.staging.as<float>();
    float* const result_staging = source_staging + kBigBlock * x.cols;
    float* const t_staging = result_staging + kBigBlock * y_cols;
    const void* const source = StageSource(x, block, bf16, source_staging, scratch);
    const Worker worker{own, static_cast<size_t>(thread)};
    if (fold != nullptr) FoldIn(*fold, folded, block, source, worker, t_staging);
    if (!has_y) return;
    float* const result = y.as<float>() + block.row * y.stride;
    const bool direct = y.contiguous() && block.rows == block.padded_rows;
    if (!direct && accumulate) {
      CopyRows(result, y.stride, result_staging, y.cols, block.rows, y.cols);
      std::fill(result_staging + block.rows * y.cols, result_staging + block.padded_rows * y.cols, 0.0f);
    }
    float* const target = direct ? result : result_staging;
    Run(*primitives[block.size], worker, source, blocks, target);
    if (fold != nullptr) FoldOut(*fold, folded, block, worker, t_staging, target);
    if (!direct) CopyRows(result_staging, y.cols, result, y.stride, block.rows, y.cols);
  });
}

bool UsesLibraryBlocks(bool bf16) {
  static const bool library_packs_f32 = LibraryPacksF32();
  return bf16 || library_packs_f32;
}

int64_t PackedBytes(const Exec& exec, int64_t out, int64_t in, bool backward, bool bf16) {
  if (!UsesLibraryBlocks(bf16)) return out * in * 4;
  return LibraryBytes(exec, backward ? out : in, backward ? in : out, bf16);
}

void PackedGemm(const Exec& exec, const Tensor& x, const FrozenWeight& w, bool backward, double beta, const Tensor& y,
                void* scratch) {
  const bool bf16 = w.dtype == DType::kBF16;
  void* const packed = backward ? w.backward : w.forward;
  if (UsesLibraryBlocks(bf16)) {
    LibraryGemm(exec, x, packed, bf16, beta, y, scratch);
  } else {
    PanelGemm(exec, x, static_cast<const float*>(packed), beta, y);
  }
}

}  // namespace cpu

int64_t PackedWeightBytes(const Exec& exec, int64_t out, int64_t in, bool backward) {
  return cpu::PackedBytes(exec, out, in, backward, exec.gemm_type() == GemmType::kBF16);
}

int64_t FrozenGemmScratchBytes(GemmType type, int64_t rows, int64_t out, int64_t in) {
  constexpr int64_t kGranule = 64;  // the plan's; at least the smallest block
  return type == GemmType::kBF16 ? cpu::RoundUp(rows, kGranule) * std::max(out, in) * 2 : 0;
}

void PackWeight(const Exec& exec, const Tensor& rows, const FrozenWeight& w) {
  LH_CHECK(rows.dtype == DType::kF32 && rows.contiguous() && rows.rows == w.out && rows.cols == w.in);
  LH_CHECK(w.packed && (w.dtype == DType::kF32 || w.dtype == DType::kBF16));
  const bool bf16 = w.dtype == DType::kBF16;
  for (const bool backward : {false, true}) {
    void* const target = backward ? w.backward : w.forward;
    if (target == nullptr) continue;
    if (cpu::UsesLibraryBlocks(bf16)) {
      cpu::PackLibrary(exec, rows, backward, bf16, target);
    } else {
      cpu::PackPanels(exec, rows, backward, static_cast<float*>(target));
    }
  }
}

}  // namespace longhaul::kernels
