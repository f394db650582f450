// New models that are large: an agent has a session long before the last of them is read.
#include "worker/agent/host_models.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "tests/fakes/tiny_model.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::agent {
namespace {

class HostModelsTest : public ::testing::Test {
 protected:
  HostModelsTest() {
    options_.state_dir = temp_.At("state");
    options_.model_dirs = {temp_.At("models")};
    options_.cpu_threads = 1;
    EXPECT_TRUE(CreateDirs(options_.state_dir).ok());
    WriteTinyModel(temp_.At("models/known"));
    Restart();
    EXPECT_EQ(AtStart(), std::vector<std::string>{"known"});
    EXPECT_EQ(readings_, 1);
    // Every other one is too large from now on.
    options_.new_model_bytes = 0;
  }
  void Restart() {
    readings_ = 0;
    models_.emplace(
        options_,
        [this](const std::string& line) {
          if (line.find("for its digest") == std::string::npos) return;
          ++readings_;
          if (readings_ == cancel_in_reading_) cancelled_ = true;
        },
        [this] { return cancelled_; });
  }
  static std::vector<std::string> Names(const ModelOffer& offer) {
    std::vector<std::string> names;
    for (const OfferedModel& model : offer) names.push_back(model.proto.name());
    return names;
  }
  std::vector<std::string> AtStart() {
    const absl::StatusOr<Inventory> inventory = models_->AtStart();
    EXPECT_TRUE(inventory.ok()) << inventory.status();
    if (!inventory.ok()) return {};
    unread_ = inventory->unread;
    EXPECT_EQ(inventory->proto.models_size(), static_cast<int>(inventory->models.size()));
    return Names(inventory->models);
  }
  std::vector<std::string> Look() {
    const auto found = models_->Look(false);
    EXPECT_TRUE(found.ok()) << found.status();
    if (!found.ok() || !found->has_value()) return {"nothing new"};
    return Names(**found);
  }

  TempDir temp_;
  InventoryOptions options_;
  std::optional<HostModels> models_;
  UnreadModels unread_;
  int readings_ = 0;  // of models, for their digests
  int cancel_in_reading_ = 0;
  bool cancelled_ = false;
};

TEST_F(HostModelsTest, WhatIsKnownIsOfferedAtOnceAndEveryLookReadsOneMore) {
  WriteTinyModel(temp_.At("models/a"), /*seed=*/2);
  WriteTinyModel(temp_.At("models/b"), /*seed=*/3);
  Restart();
  EXPECT_EQ(AtStart(), std::vector<std::string>{"known"});
  EXPECT_EQ(unread_, (UnreadModels{temp_.At("models/a"), temp_.At("models/b")}));
  EXPECT_EQ(readings_, 0) << "nobody waits for them";
  EXPECT_EQ(Look(), (std::vector<std::string>{"a", "known"}));
  EXPECT_EQ(readings_, 1);
  EXPECT_EQ(Look(), (std::vector<std::string>{"a", "b", "known"}));
  EXPECT_EQ(Look(), std::vector<std::string>{"nothing new"});
  EXPECT_EQ(readings_, 2);
  Restart();
  EXPECT_EQ(AtStart(), (std::vector<std::string>{"a", "b", "known"})) << "each look keeps what it did not have to read";
  EXPECT_EQ(readings_, 0);
}

TEST_F(HostModelsTest, AnAgentThatIsKilledOverTheSecondKnowsTheFirst) {
  WriteTinyModel(temp_.At("models/a"), /*seed=*/2);
  WriteTinyModel(temp_.At("models/b"), /*seed=*/3);
  options_.new_model_bytes = int64_t{1} << 30;  // both in one go
  cancel_in_reading_ = 2;
  Restart();
  EXPECT_TRUE(absl::IsCancelled(models_->AtStart().status()));
  EXPECT_EQ(readings_, 2);
  cancelled_ = false;
  cancel_in_reading_ = 0;
  Restart();
  EXPECT_EQ(AtStart(), (std::vector<std::string>{"a", "b", "known"}));
  EXPECT_EQ(readings_, 1) << "and reads the second alone";
}

}  // namespace
}  // namespace longhaul::agent
