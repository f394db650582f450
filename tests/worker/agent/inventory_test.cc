#include "worker/agent/inventory.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "tests/fakes/tiny_model.h"
#include "tests/worker/attempt/temp_dir.h"
#include "wire/model_values.h"
#include "worker/agent/model_watch.h"
#include "worker/formats/model_source.h"

namespace longhaul::agent {
namespace {

class InventoryTest : public ::testing::Test {
 protected:
  InventoryTest() {
    options_.state_dir = temp_.At("state");
    options_.model_dirs = {temp_.At("models")};
    EXPECT_TRUE(CreateDirs(options_.state_dir).ok());
    EXPECT_TRUE(CreateDirs(temp_.At("models")).ok());
  }
  absl::StatusOr<Inventory> Take() {
    lines_.clear();
    return TakeInventory(options_, [this](const std::string& line) { lines_ += line + "\n"; });
  }
  TempDir temp_;
  InventoryOptions options_;
  std::string lines_;
};

TEST_F(InventoryTest, DescribesTheCpuAndTheModels) {
  WriteTinyModel(temp_.At("models/tiny"));
  const auto inventory = Take();
  ASSERT_TRUE(inventory.ok()) << inventory.status();
  ASSERT_EQ(inventory->proto.devices_size(), 1);
  const v1::Device& device = inventory->proto.devices(0);
  EXPECT_EQ(device.id(), "cpu-0");
  EXPECT_EQ(device.facts().kind(), v1::DEVICE_KIND_CPU);
  EXPECT_TRUE(wire::FromProto(device.facts()).ok());
  EXPECT_GT(device.facts().gemm_flops(), 1e8);
  EXPECT_EQ(device.facts().cpu_threads(), HostCpuThreads());
  EXPECT_GT(inventory->proto.host_bytes_total(), 0);
  EXPECT_LE(inventory->proto.host_bytes_total(), device.facts().host_bytes());
  ASSERT_EQ(inventory->proto.models_size(), 1);
  const v1::Model& model = inventory->proto.models(0);
  EXPECT_EQ(model.name(), "tiny");
  EXPECT_EQ(model.storage(), "safetensors:F32");
  EXPECT_TRUE(model.has_chat_template());
  EXPECT_TRUE(IsSha256Hex(model.digest()));
  EXPECT_TRUE(IsSha256Hex(model.tokenizer_digest()));
  EXPECT_EQ(model.shape().hidden(), TinyModelShape().hidden);
  ASSERT_EQ(inventory->models.size(), 1u);
  const LocalModel& local = inventory->models[0].local;
  EXPECT_EQ(inventory->models[0].proto.digest(), model.digest());
  EXPECT_EQ(local.path, temp_.At("models/tiny"));
  const auto source = formats::ModelSource::Open(temp_.At("models/tiny"));
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(local.fingerprint, *source->Fingerprint());
  EXPECT_EQ(local.stamp, ModelStamp(temp_.At("models/tiny")));
}

TEST_F(InventoryTest, TheModelsAloneAreTakenAgain) {
  WriteTinyModel(temp_.At("models/tiny"));
  const auto first = Take();
  ASSERT_TRUE(first.ok());
  WriteTinyModel(temp_.At("models/tiny"), /*seed=*/2);
  WriteTinyModel(temp_.At("models/more"), /*seed=*/3);
  const auto offer = TakeModels(options_, first->models, {}, [](const std::string&) {});
  ASSERT_TRUE(offer.ok()) << offer.status();
  ASSERT_EQ(offer->size(), 2u);
  EXPECT_EQ(ByDigest(*offer).size(), 2u);
  for (const OfferedModel& model : *offer) EXPECT_NE(model.proto.digest(), first->proto.models(0).digest());
}

TEST_F(InventoryTest, WhatLiesBesideAModelIsNoPartOfIt) {
  WriteTinyModel(temp_.At("models/tiny"));
  const auto first = Take();
  ASSERT_TRUE(first.ok());
  const std::string digest = first->proto.models(0).digest();
  std::string lines;
  const auto log = [&](const std::string& line) { lines += line; };
  const std::set<std::string> tiny = {temp_.At("models/tiny")};
  for (const char* beside : {"README.md", "adapter_model.safetensors", "optimizer.bin"}) {
    ASSERT_TRUE(WriteFileAtomic(temp_.At("models/tiny/") + beside, "x").ok());
    // Even while it is written.
    for (const std::set<std::string>& changing : {std::set<std::string>(), tiny}) {
      const auto offer = TakeModels(options_, first->models, changing, log);
      ASSERT_TRUE(offer.ok()) << offer.status();
      ASSERT_EQ(offer->size(), 1u) << beside;
      EXPECT_EQ(offer->at(0).proto.digest(), digest);
      EXPECT_EQ(offer->at(0).local.fingerprint, *formats::ModelSource::FingerprintOf(offer->at(0).local.files));
      EXPECT_EQ(offer->at(0).local.fingerprint,
                formats::ModelSource::Open(temp_.At("models/tiny"))->Fingerprint().value());
      EXPECT_EQ(offer->at(0).local.stamp, ModelStamp(temp_.At("models/tiny")));
    }
  }
  EXPECT_EQ(lines, "") << "nothing was read again";
  // Its own files: another model, and none while they are written.
  WriteTinyModel(temp_.At("models/tiny"), /*seed=*/2);
  EXPECT_TRUE(TakeModels(options_, first->models, tiny, log)->empty());
  const auto other = TakeModels(options_, first->models, {}, log);
  ASSERT_EQ(other->size(), 1u);
  EXPECT_NE(other->at(0).proto.digest(), digest);
}

TEST_F(InventoryTest, DigestsAndSpeedAreKeptUntilSomethingChanges) {
  WriteTinyModel(temp_.At("models/tiny"));
  const auto first = Take();
  ASSERT_TRUE(first.ok());
  EXPECT_NE(lines_.find("for its digest"), std::string::npos);
  EXPECT_NE(lines_.find("measured"), std::string::npos);
  const auto second = Take();
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(lines_, "");
  EXPECT_EQ(second->proto.SerializeAsString().size(), first->proto.SerializeAsString().size());
  EXPECT_EQ(second->proto.models(0).digest(), first->proto.models(0).digest());
  WriteTinyModel(temp_.At("models/tiny"), /*seed=*/2);
  const auto third = Take();
  ASSERT_TRUE(third.ok());
  EXPECT_NE(third->proto.models(0).digest(), first->proto.models(0).digest());
  // A cache that is damaged is as good as none.
  ASSERT_TRUE(WriteFileAtomic(options_.state_dir + "/models.json", "{\"x").ok());
  EXPECT_EQ(Take()->proto.models(0).digest(), third->proto.models(0).digest());
}

TEST_F(InventoryTest, LeavesOutWhatItCannotUseAndSaysWhy) {
  WriteTinyModel(temp_.At("models/good"));
  WriteTinyModel(temp_.At("models/bad"));
  ASSERT_TRUE(WriteFileAtomic(temp_.At("models/bad/model.safetensors"), "short").ok());
  ASSERT_TRUE(WriteFileAtomic(temp_.At("models/broken.gguf"), "GGUF but not really").ok());
  ASSERT_TRUE(WriteFileAtomic(temp_.At("models/notes.txt"), "no model").ok());
  const auto inventory = Take();
  ASSERT_TRUE(inventory.ok()) << inventory.status();
  ASSERT_EQ(inventory->proto.models_size(), 1);
  EXPECT_EQ(inventory->proto.models(0).name(), "good");
  EXPECT_NE(lines_.find("models/bad is left out"), std::string::npos) << lines_;
  EXPECT_NE(lines_.find("broken.gguf is left out"), std::string::npos) << lines_;
  EXPECT_EQ(lines_.find("notes.txt"), std::string::npos);
}

TEST_F(InventoryTest, TheClassNamesWhatPlansAndBitsDependOn) {
  options_.cpu_threads = 1;
  const auto of = [&](int64_t host_bytes) {
    options_.host_bytes = host_bytes;
    const auto inventory = Take();
    EXPECT_TRUE(inventory.ok()) << inventory.status();
    return inventory->proto.devices(0).facts().device_class();
  };
  const std::string gib = of(int64_t{1} << 30);
  EXPECT_EQ(gib, of(int64_t{1} << 30));
  EXPECT_NE(gib.find("-1t-1g-"), std::string::npos) << gib;
  EXPECT_NE(of(400 << 20).find("-1t-400m-"), std::string::npos);
  EXPECT_NE(of(400 << 20), gib);
}

TEST_F(InventoryTest, ASignalEndsTheReadingOfAModel) {
  WriteTinyModel(temp_.At("models/tiny"));
  const auto cancelled = TakeInventory(
      options_, [](const std::string&) {}, [] { return true; });
  EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled) << cancelled.status();
  EXPECT_TRUE(Take().ok());
}

TEST_F(InventoryTest, AModelFolderItselfIsAModel) {
  WriteTinyModel(temp_.At("alone"));
  options_.model_dirs = {temp_.At("alone") + "/"};
  EXPECT_EQ(Take()->proto.models(0).name(), "alone");
}

TEST_F(InventoryTest, OfTwoModelsOfOneNameTheSecondIsLeftOutOnceTheWorkerRuns) {
  WriteTinyModel(temp_.At("models/tiny"));
  const auto first = Take();
  ASSERT_TRUE(first.ok());
  CreateDirs(temp_.At("more")).IgnoreError();
  WriteTinyModel(temp_.At("more/other"), /*seed=*/2);
  WriteTinyModel(temp_.At("more/tiny"), /*seed=*/3);
  options_.model_dirs.push_back(temp_.At("more"));
  std::string lines;
  const auto offer = TakeModels(options_, first->models, {}, [&](const std::string& line) { lines += line + "\n"; });
  ASSERT_TRUE(offer.ok()) << offer.status();
  ASSERT_EQ(offer->size(), 2u) << "what else is new is offered";
  EXPECT_EQ((*offer)[0].proto.digest(), first->proto.models(0).digest());
  EXPECT_EQ((*offer)[1].proto.name(), "other");
  EXPECT_NE(lines.find("more/tiny is left out: two models are called tiny: "), std::string::npos) << lines;
}

TEST_F(InventoryTest, RefusesWhatCannotBe) {
  options_.model_dirs = {temp_.At("absent")};
  EXPECT_EQ(Take().status().code(), absl::StatusCode::kNotFound);
  options_.model_dirs = {temp_.At("models"), temp_.At("more")};
  WriteTinyModel(temp_.At("models/tiny"));
  WriteTinyModel(temp_.At("more/tiny"));
  EXPECT_EQ(ErrorReason(Take().status()), "MODEL_TWICE");
  options_.model_dirs.pop_back();
  options_.cpu_threads = HostCpuThreads() + 1;
  EXPECT_EQ(ErrorViolations(Take().status()).at(0).field, "--cpu-threads");
  options_.cpu_threads = 1;
  options_.host_bytes = HostMemTotalBytes() + 1;
  EXPECT_EQ(ErrorViolations(Take().status()).at(0).field, "--host-bytes");
  options_.host_bytes = 1 << 30;
  const auto inventory = Take();
  ASSERT_TRUE(inventory.ok());
  EXPECT_EQ(inventory->proto.host_bytes_total(), 1 << 30);
  EXPECT_EQ(inventory->proto.cpu_threads_total(), 1);
}

}  // namespace
}  // namespace longhaul::agent
