// The formulas of sdpa_shape.h against what cuDNN 9.14.0 and 9.19.0 answer for an H100.
#include "kernels/shapes/sdpa_shape.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr SdpaDevice kH100{.compute_capability = 90, .cudnn_version = 91900};

SdpaShape Deterministic(SdpaShape shape) {
  shape.deterministic = true;
  return shape;
}

SdpaShape Padded(SdpaShape shape) {
  shape.layout = SdpaLayout::kPadded;
  return shape;
}

SdpaShape LastQueries(SdpaShape shape, int64_t rows) {
  shape.max_q = rows;
  shape.queries_last = true;
  return shape;
}

TEST(SdpaShapeTest, BackwardWorkspaceIsTheLibrarys) {
  struct Answer {
    SdpaShape shape;
    int64_t bytes;
  };
  const Answer answers[] = {
      {DenseSdpa(2, 2048, 32, 8, 128), 134742272},
      {DenseSdpa(2, 2048, 8, 8, 128), 16908544},
      {DenseSdpa(2, 2048, 24, 8, 128), 101056768},
      {DenseSdpa(2, 2048, 32, 8, 64), 67633408},
      {DenseSdpa(2, 2048, 32, 8, 96), 101187840},
      {DenseSdpa(2, 2048, 32, 8, 256), 268960000},
      {DenseSdpa(1, 342784, 4, 1, 128), 1409528064},
      {DenseSdpa(1, 342784, 1, 1, 128), 176876800},
      {LastQueries(DenseSdpa(2, 2048, 32, 8, 128), 256), 75563264},
      {Padded(DenseSdpa(2, 1000, 32, 8, 128)), 65792256},
      {Padded(DenseSdpa(2, 65536, 32, 8, 128)), 4311744768},
      {Deterministic(DenseSdpa(2, 2048, 8, 8, 128)), 134349056},
      {Deterministic(DenseSdpa(2, 2048, 32, 8, 128)), 604504320},
      {Deterministic(DenseSdpa(1, 1025, 8, 8, 128)), 20087072},
      {Deterministic(LastQueries(DenseSdpa(1, 1025, 8, 8, 128), 256)), 4727040},
      {RaggedSdpa(2, 2048, 4096, 32, 8, 128), 201852928},
      {RaggedSdpa(1, 2048, 4096, 8, 8, 128), 16909440},
      {RaggedSdpa(3, 2048, 4096, 8, 8, 128), 16910336},
      {RaggedSdpa(64, 2048, 4096, 8, 8, 128), 16938112},
      {RaggedSdpa(65, 65536, 4096, 8, 8, 128), 16938112},
      {RaggedSdpa(256, 2048, 4096, 8, 8, 128), 17024128},
      {RaggedSdpa(2, 2048, 4096, 32, 8, 64), 101189632},
      {RaggedSdpa(2, 2048, 4096, 32, 8, 256), 403179520},
      {WithOneQkvBuffer(DenseSdpa(2, 2048, 32, 8, 128), 6144), 134742272},
      {WithOneQkvBuffer(RaggedSdpa(2, 2048, 4096, 32, 8, 128), 6144), 906323968},
      {Deterministic(RaggedSdpa(3, 2048, 4096, 8, 8, 128)), 201459456},
      {Deterministic(RaggedSdpa(3, 2048, 4096, 32, 8, 128)), 940050176},
  };
  for (const Answer& answer : answers) {
    EXPECT_EQ(SdpaBackwardWorkspaceBytes(answer.shape, kH100), answer.bytes) << SdpaKey(answer.shape);
  }
}

TEST(SdpaShapeTest, ForwardWorkspaceIsTheLibrarys) {
  EXPECT_EQ(SdpaForwardWorkspaceBytes(DenseSdpa(2, 65536, 32, 8, 128), kH100), 256);
  EXPECT_EQ(SdpaForwardWorkspaceBytes(Padded(DenseSdpa(2, 1000, 32, 8, 256)), kH100), 256);
  // 9.14 answers 768 for one document and 1,280 for two; from 64 on both say the same.
  EXPECT_EQ(SdpaForwardWorkspaceBytes(RaggedSdpa(1, 2048, 4096, 32, 8, 128), kH100), 17152);
  EXPECT_EQ(SdpaForwardWorkspaceBytes(RaggedSdpa(64, 2048, 4096, 32, 8, 128), kH100), 17152);
  EXPECT_EQ(SdpaForwardWorkspaceBytes(RaggedSdpa(66, 2048, 4096, 32, 8, 64), kH100), 17664);
  EXPECT_EQ(SdpaForwardWorkspaceBytes(RaggedSdpa(255, 2048, 4096, 32, 8, 128), kH100), 65792);
  EXPECT_EQ(SdpaForwardWorkspaceBytes(RaggedSdpa(1024, 2048, 4096, 32, 8, 128), kH100), 262912);
}

TEST(SdpaShapeTest, StatisticsAreRowsWhereTheDeviceReadsThem) {
  const SdpaShape ragged = RaggedSdpa(64, 512, 4096, 32, 8, 128);
  EXPECT_TRUE(SdpaStatsAreRows(ragged, {.compute_capability = 90}));
  EXPECT_TRUE(SdpaStatsAreRows(ragged, {.compute_capability = 100}));
  EXPECT_FALSE(SdpaStatsAreRows(ragged, {.compute_capability = 89}));
  EXPECT_FALSE(SdpaStatsAreRows(DenseSdpa(1, 128, 1, 1, 64), {.compute_capability = 90}));
  EXPECT_EQ(SdpaStatsBytes(ragged, {.compute_capability = 90}), 4096 * 32 * 4);
  EXPECT_EQ(SdpaStatsBytes(ragged, {.compute_capability = 89}), 64 * 512 * 32 * 4);
}

TEST(SdpaShapeTest, IndexArraysFollowEachOther) {
  const SdpaShape shape = RaggedSdpa(3, 512, 4096, 32, 8, 128);
  EXPECT_EQ(SdpaIndexOffset(shape, SdpaIndex::kQ), 0);
  EXPECT_EQ(SdpaIndexOffset(shape, SdpaIndex::kK), 32);
  EXPECT_EQ(SdpaIndexOffset(shape, SdpaIndex::kStats), 256);
  EXPECT_EQ(SdpaIndexOffset(shape, SdpaIndex::kLengthsQ), 288);
  EXPECT_EQ(SdpaIndexOffset(shape, SdpaIndex::kLengthsKv), 304);
  EXPECT_EQ(SdpaIndexBytes(shape), 320);
  EXPECT_EQ(SdpaIndexBytes(DenseSdpa(1, 128, 1, 1, 64)), 0);
}

TEST(SdpaShapeTest, FlopsCountVisibleScores) {
  SdpaShape shape = DenseSdpa(1, 4, 2, 1, 8);
  EXPECT_EQ(SdpaFlops(shape, 4, false), 10 * 2 * 8 * 4);
  EXPECT_EQ(SdpaFlops(shape, 4, true), 10 * 2 * 8 * 10);
  shape.window = 2;
  EXPECT_EQ(SdpaFlops(shape, 4, false), 7 * 2 * 8 * 4);
  EXPECT_EQ(SdpaFlops(shape, 1, false), 1 * 2 * 8 * 4);
}

std::string Fault(SdpaShape shape, void (*change)(SdpaShape*)) {
  change(&shape);
  const absl::Status status = CheckSdpaShape(shape);
  return status.ok() ? "" : ErrorViolations(status).at(0).field;
}

TEST(SdpaShapeTest, ChecksNameTheField) {
  const SdpaShape dense = DenseSdpa(2, 256, 8, 2, 128);
  EXPECT_EQ(Fault(dense, [](SdpaShape*) {}), "");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->batch = 0; }), "batch");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->kv_heads = 3; }), "heads");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->head_dim = 264; }), "head_dim");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->k_stride = 128; }), "k_stride");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->dv_stride = 257; }), "dv_stride");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->max_q = 128; }), "max_q");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->window = -1; }), "window");
  EXPECT_EQ(Fault(dense, [](SdpaShape* s) { s->scale = 0; }), "scale");
  EXPECT_EQ(Fault(RaggedSdpa(2, 256, 0, 8, 2, 128), [](SdpaShape*) {}), "tokens_q");
  EXPECT_EQ(Fault(RaggedSdpa(2, 256, 300, 8, 2, 128), [](SdpaShape* s) { s->tokens_kv = 200; }), "tokens_q");
}

}  // namespace
}  // namespace longhaul::kernels::cuda
