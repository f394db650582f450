// Attention of 8B-class models: cuDNN through our plan, dense and packed.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/sdpa.h"
#include "tests/bench/cuda/bench_support.h"

namespace longhaul::kernels::cuda {
namespace {

template <typename T>
T Need(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "cuda_lib_bench: %s\n", std::string(value.status().message()).c_str());
  std::exit(1);
}

// `lengths`: of the documents, for the count of useful operations.
void Report(cudaStream_t stream, Cudnn* cudnn, const char* what, const SdpaShape& shape,
            const std::vector<int64_t>& lengths, const SdpaOptions& options) {
  auto built = SdpaPlan::Create(cudnn, shape, options);
  if (!built.ok()) {
    JsonLine("attention")
        .Text("what", what)
        .Text("shape", SdpaKey(shape))
        .Text("refused", std::string(built.status().message()));
    return;
  }
  const std::unique_ptr<SdpaPlan> plan = *std::move(built);
  const BenchBuffer q = BenchBuffer::RandomBf16(shape.rows_q() * shape.q_stride, 1);
  const BenchBuffer k = BenchBuffer::RandomBf16(shape.rows_kv() * shape.k_stride, 1);
  const BenchBuffer v = BenchBuffer::RandomBf16(shape.rows_kv() * shape.v_stride, 1);
  const BenchBuffer d_o = BenchBuffer::RandomBf16(shape.rows_q() * shape.d_o_stride, 1);
  const BenchBuffer o = BenchBuffer::Zeros(shape.rows_q() * shape.o_stride * 2);
  const BenchBuffer dq = BenchBuffer::Zeros(shape.rows_q() * shape.dq_stride * 2);
  const BenchBuffer dk = BenchBuffer::Zeros(shape.rows_kv() * shape.dk_stride * 2);
  const BenchBuffer dv = BenchBuffer::Zeros(shape.rows_kv() * shape.dv_stride * 2);
  const BenchBuffer stats = BenchBuffer::Zeros(SdpaStatsBytes(shape, cudnn->device()));
  const BenchBuffer index = BenchBuffer::Zeros(SdpaIndexBytes(shape));
  const BenchBuffer workspace =
      BenchBuffer::Zeros(std::max(plan->forward_workspace_bytes(), plan->backward_workspace_bytes()));
  const SdpaBuffers at{.q = q.at(),
                       .k = k.at(),
                       .v = v.at(),
                       .o = o.at(),
                       .stats = stats.at<float>(),
                       .d_o = d_o.at(),
                       .dq = dq.at(),
                       .dk = dk.at(),
                       .dv = dv.at(),
                       .index = index.at()};
  if (shape.layout == SdpaLayout::kRagged) {
    std::vector<int64_t> rows{0};
    for (int64_t b = 0; b < shape.batch; ++b) {
      rows.push_back(rows.back() + (b < static_cast<int64_t>(lengths.size()) ? lengths[static_cast<size_t>(b)] : 0));
    }
    const BenchBuffer device_rows = BenchBuffer::Zeros(static_cast<int64_t>(rows.size()) * 8);
    Require(cudaMemcpy(device_rows.at(), rows.data(), rows.size() * 8, cudaMemcpyHostToDevice), "cudaMemcpy");
    plan->PrepareIndex(stream, device_rows.at<int64_t>(), device_rows.at<int64_t>(), index.at());
    Require(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
  for (const bool backward : {false, true}) {
    double flops = 0;
    for (const int64_t length : lengths) flops += SdpaFlops(shape, length, backward);
    const BenchTime time = Measure(stream, [&] {
      backward ? plan->Backward(stream, at, workspace.at()) : plan->Forward(stream, at, workspace.at());
    });
    JsonLine json("attention");
    json.Text("what", what).Text("pass", backward ? "backward" : "forward").Text("shape", SdpaKey(shape));
    json.Rate(time, flops).Text("plan", plan->description());
    json.Count("workspace_bytes", backward ? plan->backward_workspace_bytes() : plan->forward_workspace_bytes());
    json.Count("workspace_formula_bytes", backward ? SdpaBackwardWorkspaceBytes(shape, cudnn->device())
                                                   : SdpaForwardWorkspaceBytes(shape, cudnn->device()));
  }
}

// Alpaca-like: many short documents and a few long ones, to `tokens` in all.
std::vector<int64_t> ShortDocuments(int64_t tokens) {
  std::vector<int64_t> lengths;
  for (int64_t used = 0, i = 0; used < tokens; ++i) {
    const int64_t length = std::min(tokens - used, 20 + (i * 7919) % 160 + (i % 11 == 0 ? 200 : 0));
    lengths.push_back(length);
    used += length;
  }
  return lengths;
}

}  // namespace

void BenchAttention(cudaStream_t stream) {
  const std::unique_ptr<Cudnn> cudnn = Need(Cudnn::Create());
  const auto all = [](const SdpaShape& s) { return std::vector<int64_t>(static_cast<size_t>(s.batch), s.max_q); };
  for (const int64_t rows : {2048, 4096, 8192, 16384, 32768, 65536}) {
    const SdpaShape dense = DenseSdpa(std::max<int64_t>(1, 8192 / rows), rows, 32, 8, 128);
    Report(stream, cudnn.get(), "dense", dense, all(dense), {.only_cudnn = true});
    Report(stream, cudnn.get(), "one qkv buffer", WithOneQkvBuffer(dense, 6144), all(dense), {.only_cudnn = true});
    if (rows <= 8192) {
      SdpaShape deterministic = dense;
      deterministic.deterministic = true;
      Report(stream, cudnn.get(), "deterministic", deterministic, all(dense), {.only_cudnn = true});
    }
    if (rows == 16384) {
      SdpaShape window = dense;
      window.window = 4096;
      Report(stream, cudnn.get(), "window 4096", window, all(dense), {.only_cudnn = true});
      for (const int64_t group : {4, 1}) {
        const SdpaShape part = DenseSdpa(1, rows, group, 1, 128);
        Report(stream, cudnn.get(), "part of the heads", part, all(part), {.only_cudnn = true});
      }
    }
  }
  for (const int64_t dim : {64, 96, 256}) {
    const SdpaShape shape = DenseSdpa(2, 4096, 32, 8, dim);
    Report(stream, cudnn.get(), "head_dim", shape, all(shape), {.only_cudnn = true});
  }
  for (const int64_t documents : {64, 256}) {
    const std::vector<int64_t> lengths = ShortDocuments(4096);
    Report(stream, cudnn.get(), "pack of short documents", RaggedSdpa(documents, 512, 4096, 32, 8, 128), lengths,
           {.only_cudnn = true});
    Report(stream, cudnn.get(), "pack of short documents, bound 4096", RaggedSdpa(documents, 4096, 4096, 32, 8, 128),
           lengths, {.only_cudnn = true});
  }
  const SdpaShape whole = RaggedSdpa(64, 4096, 4096, 32, 8, 128);
  Report(stream, cudnn.get(), "pack of one document", whole, {4096}, {.only_cudnn = true});
  const SdpaShape small = DenseSdpa(1, 2048, 32, 8, 128);
  Report(stream, cudnn.get(), "reference kernels", small, all(small), {.only_reference = true});
}

}  // namespace longhaul::kernels::cuda
