// The cut cross entropy against the formula in double.
#include "kernels/cuda/cut_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_exec.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/cuda/text_like.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kGemmBytes = 16 << 20;
constexpr double kScale = 0.125;

// A call: operands on host and device, and the formula.
class CceCase {
 public:
  CceCase(const Exec& exec, LtGemm* gemm, const CceShape& shape, const TextLike& text)
      : exec_(exec),
        shape_(shape),
        hidden_(shape.rows, shape.hidden, shape.hidden_stride),
        head_(shape.vocab, shape.hidden, shape.head_stride),
        d_hidden_(shape.rows, shape.hidden, shape.d_hidden_stride),
        mean_row_(1, shape.hidden, shape.hidden),
        labels_(shape.rows * 4),
        scale_(8),
        totals_(sizeof(LossTotals)) {
    auto created = CutCrossEntropy::Create(gemm, shape);
    EXPECT_TRUE(created.ok()) << created.status().message();
    cce_ = *std::move(created);
    workspace_ = std::make_unique<DeviceBytes>(cce_->workspace_bytes());
    Fill(text);
  }

  void Run(bool with_gradient) {
    const LossTotals none;
    totals_.Upload(&none, sizeof(none));
    CceOperands operands = Operands();
    if (!with_gradient) operands.d_hidden = nullptr;
    if (shape_.negligible) cce_->PrepareHead(exec_, head_.device(), mean_row_.device());
    cce_->Run(exec_, operands, workspace_->data());
    exec_.Synchronize();
    EXPECT_TRUE(d_hidden_.Download());
  }
  CceOperands Operands() const {
    return {hidden_.device(),         head_.device(),     labels_.as<int32_t>(), scale_.as<double>(),
            totals_.as<LossTotals>(), d_hidden_.device(), mean_row_.device()};
  }

  // Label of a row on the host.
  std::vector<int32_t>& labels() { return host_labels_; }
  void UploadLabels() { labels_.Upload(host_labels_.data(), labels_.bytes()); }
  LossTotals totals() const {
    LossTotals totals;
    const std::vector<uint8_t> bytes = totals_.Download();
    std::memcpy(&totals, bytes.data(), sizeof(totals));
    return totals;
  }
  F32Matrix& d_hidden() { return d_hidden_; }
  BF16Matrix& hidden() { return hidden_; }
  const BF16Matrix& head() const { return head_; }
  CutCrossEntropy& cce() { return *cce_; }
  DeviceBytes& workspace() { return *workspace_; }

  // Softmax of a row, and its loss.
  struct Row {
    std::vector<double> p;
    double loss = 0, largest = 0;  // of the logits' magnitudes
  };
  Row Formula(int64_t i) const {
    Row row;
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < shape_.vocab; ++j) {
      double logit = 0;
      for (int64_t k = 0; k < shape_.hidden; ++k) logit += hidden_(i, k) * head_(j, k);
      row.p.push_back(logit);
      most = std::max(most, logit);
      row.largest = std::max(row.largest, std::abs(logit));
    }
    const double label = row.p[static_cast<size_t>(host_labels_[static_cast<size_t>(i)])];
    for (double& p : row.p) sum += p = std::exp(p - most);
    for (double& p : row.p) p /= sum;
    row.loss = most + std::log(sum) - label;
    return row;
  }
  bool IsTrained(int64_t i) const { return host_labels_[static_cast<size_t>(i)] != kNotTrained; }
  // d_hidden of a row in double; `keep`: columns that take part, null: all.
  std::vector<double> Gradient(int64_t i, const Row& row, const std::vector<bool>* keep = nullptr) const {
    std::vector<double> d(static_cast<size_t>(shape_.hidden), 0.0);
    for (int64_t j = 0; j < shape_.vocab; ++j) {
      if (keep != nullptr && !(*keep)[static_cast<size_t>(j)]) continue;
      const double g =
          kScale * (row.p[static_cast<size_t>(j)] - (j == host_labels_[static_cast<size_t>(i)] ? 1.0 : 0.0));
      for (int64_t k = 0; k < shape_.hidden; ++k) d[static_cast<size_t>(k)] += g * head_(j, k);
    }
    return d;
  }

 private:
  void Fill(const TextLike& text) {
    DeviceBytes hidden(shape_.rows * shape_.hidden * 2), head(shape_.vocab * shape_.hidden * 2);
    FillTextLike(nullptr, text, hidden.data(), head.data(), labels_.as<int32_t>());
    CheckCuda(cudaDeviceSynchronize(), "fill");
    const auto copy = [](const DeviceBytes& from, BF16Matrix* to) {
      const std::vector<uint8_t> bytes = from.Download();
      const auto* const values = reinterpret_cast<const __nv_bfloat16*>(bytes.data());
      for (int64_t i = 0; i < to->rows(); ++i) {
        for (int64_t k = 0; k < to->cols(); ++k) (*to)(i, k) = ToDouble(values[i * to->cols() + k]);
      }
      to->Upload();
    };
    copy(hidden, &hidden_);
    copy(head, &head_);
    const std::vector<uint8_t> bytes = labels_.Download();
    const auto* const first = reinterpret_cast<const int32_t*>(bytes.data());
    host_labels_.assign(first, first + shape_.rows);
    scale_.Upload(&kScale, 8);
  }

  const Exec& exec_;
  const CceShape shape_;
  BF16Matrix hidden_, head_;
  F32Matrix d_hidden_, mean_row_;
  DeviceBytes labels_, scale_, totals_;
  std::vector<int32_t> host_labels_;
  std::unique_ptr<CutCrossEntropy> cce_;
  std::unique_ptr<DeviceBytes> workspace_;
};

class CutCrossEntropyTest : public testing::Test {
 protected:
  CutCrossEntropyTest() {
    auto exec = Exec::CreateCuda(0);
    EXPECT_TRUE(exec.ok()) << exec.status().message();
    exec_ = *std::move(exec);
    auto gemm = LtGemm::Create(kGemmBytes);
    EXPECT_TRUE(gemm.ok()) << gemm.status().message();
    gemm_ = *std::move(gemm);
  }

  // A logit rounded to bf16 is off by 2^-8 of it, so a probability by that much again and e to it; the weight is
  // rounded to bf16 (2^-8), the result is f32 (2^-20, its sums). With f32 logits the first is 2^-20, too. The label's
  // column is f32.
  void CheckAgainstFormula(CceCase& test, const CceShape& shape) {
    double loss = 0, loss_near = 0;
    for (int64_t i = 0; i < shape.rows; ++i) {
      if (!test.IsTrained(i)) {
        for (int64_t k = 0; k < shape.hidden; ++k) ASSERT_EQ(test.d_hidden()(i, k), 0) << "row " << i;
        continue;
      }
      const CceCase::Row row = test.Formula(i);
      const double off = row.largest * (shape.logits == GemmElement::kBF16 ? 0x1p-8 : 0x1p-20) + 0x1p-18;
      loss += row.loss;
      loss_near += 2 * off;
      const std::vector<double> want = test.Gradient(i, row);
      for (int64_t k = 0; k < shape.hidden; ++k) {
        double near = std::abs(want[static_cast<size_t>(k)]) * 0x1p-20 + 0x1p-20;
        for (int64_t j = 0; j < shape.vocab; ++j) {
          const double p = row.p[static_cast<size_t>(j)];
          const bool is_label = j == test.labels()[static_cast<size_t>(i)];
          const double rounded = is_label ? 0x1p-20 : p * 0x1p-8;
          near += kScale * (p * 2 * std::expm1(2 * off) + rounded) * std::abs(test.head()(j, k));
        }
        ASSERT_NEAR(test.d_hidden()(i, k), want[static_cast<size_t>(k)], near) << "row " << i << " column " << k;
      }
    }
    ASSERT_NEAR(test.totals().nats, loss, loss_near);
  }

  std::unique_ptr<Exec> exec_;
  std::unique_ptr<LtGemm> gemm_;
};

CceShape Tiled(CceShape shape, int64_t tile_cols) {
  shape.tile_cols = tile_cols;
  return shape;
}

std::vector<CceShape> Shapes() {
  std::vector<CceShape> shapes;
  for (const GemmElement logits : {GemmElement::kBF16, GemmElement::kF32}) {
    // Tiles that do not cut evenly, and a vocabulary that is not a multiple of anything.
    for (CceShape shape : {MakeCceShape(70, 64, 1003, 32), Tiled(MakeCceShape(70, 64, 1003, 32), 256),
                           MakeCceShape(8, 64, 640, 32), Tiled(MakeCceShape(40, 64, 40'000, 40), 24'576)}) {
      shape.logits = logits;
      shape.hidden_stride += 8;
      shape.d_hidden_stride += 16;
      shapes.push_back(shape);
    }
  }
  return shapes;
}

TEST_F(CutCrossEntropyTest, TilesAgainstTheFormula) {
  for (const CceShape& shape : Shapes()) {
    SCOPED_TRACE(std::to_string(shape.vocab) + " columns in tiles of " + std::to_string(shape.tile_cols) + ", " +
                 (shape.logits == GemmElement::kBF16 ? "bf16" : "f32"));
    CceCase test(*exec_, gemm_.get(), shape, {.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab});
    for (int64_t i = 3; i < shape.rows; i += 7) test.labels()[static_cast<size_t>(i)] = kNotTrained;
    test.UploadLabels();
    test.Run(/*with_gradient=*/true);
    CheckAgainstFormula(test, shape);
    const LossTotals trained = test.totals();
    test.Run(/*with_gradient=*/false);
    EXPECT_EQ(test.totals().nats, trained.nats) << "the loss alone is another one";
    EXPECT_EQ(test.totals().correct, trained.correct);
  }
}

TEST_F(CutCrossEntropyTest, TheGradientMayTakeThePlaceOfTheHiddenStates) {
  CceShape negligible = Tiled(MakeCceShape(70, 64, 2048, 32), 512);
  negligible.negligible = true;
  for (CceShape shape : {MakeCceShape(70, 64, 1003, 32), Tiled(MakeCceShape(70, 64, 1003, 32), 256), negligible}) {
    shape.hidden_stride = 2 * shape.hidden;  // a row in bf16 has the room of its gradient in f32
    CceCase test(*exec_, gemm_.get(), shape, {.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab});
    test.Run(true);
    const std::vector<uint8_t> apart = test.d_hidden().bytes();
    CceOperands operands = test.Operands();
    operands.d_hidden = reinterpret_cast<float*>(test.hidden().device());
    test.cce().Run(*exec_, operands, test.workspace().data());
    exec_->Synchronize();
    EXPECT_TRUE(test.hidden().bytes() == apart);
  }
}

TEST_F(CutCrossEntropyTest, RepeatedRunsGiveTheSameBits) {
  CceShape negligible = Tiled(MakeCceShape(128, 64, 2048, 64), 512);
  negligible.negligible = true;
  negligible.full_rows = 16;
  for (const CceShape& shape :
       {MakeCceShape(70, 64, 1003, 32), Tiled(MakeCceShape(70, 64, 1003, 32), 256), negligible}) {
    CceCase test(*exec_, gemm_.get(), shape, {.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab});
    test.Run(true);
    const std::vector<uint8_t> first = test.d_hidden().bytes();
    test.workspace().Poison();
    test.Run(true);
    EXPECT_TRUE(first == test.d_hidden().bytes());
  }
}

TEST_F(CutCrossEntropyTest, TunedProductsComputeTheSame) {
  const CceShape shape = Tiled(MakeCceShape(70, 64, 1003, 32), 256);
  CceCase test(*exec_, gemm_.get(), shape, {.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab});
  const DeviceBytes workspace(CceWorkspace(shape, kGemmBytes).bytes);
  ASSERT_TRUE(test.cce().Tune(*exec_, test.Operands(), workspace.data(), kGemmBytes).ok());
  EXPECT_LE(test.cce().workspace_bytes(), workspace.bytes());
  const LossTotals none;
  exec_->Upload(test.Operands().totals, &none, sizeof(none));
  test.cce().Run(*exec_, test.Operands(), workspace.data());
  exec_->Synchronize();
  test.d_hidden().Download();
  CheckAgainstFormula(test, shape);
}

// ---- Negligible columns ----

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  return std::sqrt(sum);
}

// Relative errors of d_hidden: of tiles, the worst one, and of the mean over all rows.
struct Errors {
  double tile = 0, mean = 0, mean_without_add_back = 0;
  double kept = 0;  // fraction of the columns, over rows
  double full = 0;  // fraction of the rows that take all columns
};

Errors Compare(CceCase& test, const CceShape& shape) {
  Errors errors;
  std::vector<double> mean_off(static_cast<size_t>(shape.hidden), 0.0), mean_want = mean_off, mean_dropped = mean_off;
  const double rows = static_cast<double>(shape.rows);
  for (int64_t first = 0; first < shape.rows; first += shape.tile_rows) {
    std::vector<double> tile_off, tile_want;
    for (int64_t i = first; i < std::min(shape.rows, first + shape.tile_rows); ++i) {
      const CceCase::Row row = test.Formula(i);
      std::vector<bool> keep(static_cast<size_t>(shape.vocab), false);
      double mass = 0;
      for (size_t j = 0; j < keep.size(); ++j) {
        keep[j] = row.p[j] >= kKeptProbability || static_cast<int32_t>(j) == test.labels()[static_cast<size_t>(i)];
        if (keep[j]) mass += row.p[j];
      }
      const double kept = static_cast<double>(std::count(keep.begin(), keep.end(), true));
      const bool is_full = mass < 1 - kMaxDroppedMass || kept > kCceKeptPerRow + 1;
      errors.full += is_full ? 1 / rows : 0;
      errors.kept += kept / static_cast<double>(shape.vocab) / rows;
      const std::vector<double> want = test.Gradient(i, row), part = test.Gradient(i, row, is_full ? nullptr : &keep);
      for (size_t k = 0; k < want.size(); ++k) {
        const double off = test.d_hidden()(i, static_cast<int64_t>(k)) - want[k];
        tile_off.push_back(off);
        tile_want.push_back(want[k]);
        mean_off[k] += off;
        mean_want[k] += want[k];
        mean_dropped[k] += part[k] - want[k];
      }
    }
    errors.tile = std::max(errors.tile, Norm(tile_off) / Norm(tile_want));
  }
  errors.mean = Norm(mean_off) / Norm(mean_want);
  errors.mean_without_add_back = Norm(mean_dropped) / Norm(mean_want);
  return errors;
}

TEST_F(CutCrossEntropyTest, NegligibleColumnsStayWithinTheirErrors) {
  for (const GemmElement logits : {GemmElement::kBF16, GemmElement::kF32}) {
    CceShape shape = Tiled(MakeCceShape(160, 128, 8192, 64), 2048);
    shape.logits = logits;
    shape.negligible = true;
    shape.full_rows = 32;
    const TextLike text{.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab};
    CceCase test(*exec_, gemm_.get(), shape, text);
    test.Run(true);
    const Errors errors = Compare(test, shape);
    RecordProperty("kept", std::to_string(errors.kept));
    RecordProperty("full", std::to_string(errors.full));
    RecordProperty("tile_error", std::to_string(errors.tile));
    RecordProperty("mean_error", std::to_string(errors.mean));
    RecordProperty("mean_error_without_add_back", std::to_string(errors.mean_without_add_back));
    EXPECT_LE(errors.kept, 0.1) << "the data do not let columns go, so this shows nothing";
    EXPECT_LE(errors.full, 0.2) << "most rows take all columns, so this shows nothing";
    EXPECT_LE(errors.tile, 0x1p-6);
    EXPECT_LE(errors.mean, 0x1p-5);
    EXPECT_GE(errors.mean_without_add_back, 2 * errors.mean) << "the add-back does nothing here";
  }
}

// More columns than a list has room for, by one row's doing: a label that has next to everything takes from the tiles
// before what made their columns worth keeping, or there is none and it leaves it.
TEST_F(CutCrossEntropyTest, ListsThatRunOver) {
  for (const double peak : {0.0, 9.5, 12.5}) {
    SCOPED_TRACE(peak);
    // Wide, so that the label's row has little in common with the others: what they had goes to their mean.
    CceShape shape = Tiled(MakeCceShape(8, 2048, 4096, 8), 2048);
    shape.logits = GemmElement::kF32;  // 1 - p of such a label is that of the logit's rounding else
    shape.negligible = true;
    shape.full_rows = 8;
    const TextLike flat{.rows = shape.rows,
                        .hidden = shape.hidden,
                        .vocab = shape.vocab,
                        .slope = 0,
                        .noise = 0.05f,
                        .boost_mean = static_cast<float>(peak),
                        .boost_deviation = 0};
    CceCase test(*exec_, gemm_.get(), shape, flat);
    test.Run(true);
    const Errors errors = Compare(test, shape);
    EXPECT_LE(errors.tile, 0x1p-6);
  }
}

// Where rows lose more than 5%, the result is that of all columns.
TEST_F(CutCrossEntropyTest, FlatLogitsTakeTheFullProduct) {
  CceShape shape = Tiled(MakeCceShape(70, 64, 8192, 32), 4096);
  shape.negligible = true;
  shape.full_rows = 16;
  const TextLike flat{.rows = shape.rows,
                      .hidden = shape.hidden,
                      .vocab = shape.vocab,
                      .slope = 0,
                      .noise = 0.1f,
                      .boost_mean = 0,
                      .boost_deviation = 0};
  CceCase test(*exec_, gemm_.get(), shape, flat);
  test.Run(true);
  CheckAgainstFormula(test, shape);
}

TEST_F(CutCrossEntropyTest, NegligibleColumnsCanBeCaptured) {
  CceShape shape = Tiled(MakeCceShape(128, 128, 8192, 64), 4096);
  shape.negligible = true;
  shape.full_rows = 16;
  CceCase test(*exec_, gemm_.get(), shape, {.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab});
  test.Run(true);
  const std::vector<uint8_t> eager = test.d_hidden().bytes();
  const cudaStream_t stream = exec_->cuda().compute.get();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  test.cce().Run(*exec_, test.Operands(), test.workspace().data());
  CheckCuda(cudaStreamEndCapture(stream, &graph), "end capture");
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  for (int replay = 0; replay < 2; ++replay) {
    test.d_hidden().Poison();
    CheckCuda(cudaGraphLaunch(executable, stream), "launch");
    exec_->Synchronize();
    EXPECT_TRUE(test.d_hidden().bytes() == eager);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_F(CutCrossEntropyTest, ANotANumberIsNotDropped) {
  CceShape shape = Tiled(MakeCceShape(64, 64, 2048, 32), 1024);
  shape.negligible = true;
  shape.full_rows = 16;
  CceCase test(*exec_, gemm_.get(), shape, {.rows = shape.rows, .hidden = shape.hidden, .vocab = shape.vocab});
  test.hidden()(5, 3) = std::numeric_limits<double>::quiet_NaN();
  test.hidden().Upload();
  test.Run(true);
  EXPECT_TRUE(std::isnan(test.totals().nats));
  EXPECT_TRUE(std::isnan(test.d_hidden()(5, 0)));
  EXPECT_TRUE(std::isfinite(test.d_hidden()(6, 0)) && std::isfinite(test.d_hidden()(40, 0))) << "other rows are hurt";
}

}  // namespace
}  // namespace longhaul::kernels::cuda
