#include "worker/agent/model_watch.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::agent {
namespace {

class ModelWatchTest : public ::testing::Test {
 protected:
  ModelWatchTest() {
    Write("a.gguf", "one");
    EXPECT_TRUE(CreateDirs(temp_.At("models/b")).ok());
    Write("b/config.json", "{}");
    watch_.emplace(std::vector<std::string>{temp_.At("models")}, [this]() -> absl::StatusOr<ModelOffer> {
      ++reads_;
      if (!failure_.ok()) return failure_;
      return ModelOffer();
    });
  }
  void Write(const std::string& name, const std::string& bytes) {
    EXPECT_TRUE(CreateDirs(temp_.At("models")).ok());
    EXPECT_TRUE(WriteFileAtomic(temp_.At("models/" + name), bytes).ok());
  }
  bool Changed() {
    const auto look = watch_->Look();
    EXPECT_TRUE(look.ok()) << look.status();
    return look.ok() && look->has_value();
  }

  TempDir temp_;
  std::optional<ModelWatch> watch_;
  absl::Status failure_;
  int reads_ = 0;
};

TEST_F(ModelWatchTest, ReadsOnceWhatHasChangedAndSettled) {
  EXPECT_FALSE(Changed());
  const std::function<void()> changes[] = {
      [this] { Write("a.gguf", "two"); },                                   // replaced
      [this] { Write("c.gguf", "new"); },                                   // added
      [this] { Write("b/config.json", "{\"layers\": 2}"); },                // in a folder of its own
      [this] { EXPECT_TRUE(RemoveFile(temp_.At("models/a.gguf")).ok()); },  // removed
      [this] { EXPECT_TRUE(RemoveTree(temp_.At("models/b")).ok()); }};
  int reads = 0;
  for (const auto& change : changes) {
    change();
    EXPECT_FALSE(Changed()) << "it may still be written";
    EXPECT_EQ(reads_, reads);
    EXPECT_TRUE(Changed());
    EXPECT_EQ(reads_, ++reads);
    EXPECT_FALSE(Changed());
    EXPECT_EQ(reads_, reads);
  }
}

TEST_F(ModelWatchTest, ReadsTheSameAgainWhereItIsAsked) {
  EXPECT_FALSE(Changed());
  const auto anyway = watch_->Look(true);
  ASSERT_TRUE(anyway.ok());
  EXPECT_TRUE(anyway->has_value());
  Write("a.gguf", "two");
  EXPECT_FALSE(watch_->Look(true)->has_value()) << "not what may still be written";
}

TEST_F(ModelWatchTest, WaitsWhileAFileGrows) {
  for (int i = 0; i < 5; ++i) {
    Write("big.gguf", std::string(static_cast<size_t>(i), 'x'));
    EXPECT_FALSE(Changed());
  }
  EXPECT_EQ(reads_, 0);
  EXPECT_TRUE(Changed());
}

TEST_F(ModelWatchTest, ReadsAgainAfterAFailure) {
  Write("a.gguf", "two");
  EXPECT_FALSE(Changed());
  failure_ = absl::UnavailableError("two models have one name");
  EXPECT_EQ(watch_->Look().status(), failure_);
  EXPECT_EQ(watch_->Look().status(), failure_);
  failure_ = absl::OkStatus();
  EXPECT_TRUE(Changed());
  EXPECT_EQ(reads_, 3);
}

TEST_F(ModelWatchTest, AStampIsOfTheFilesAndNoStampOfNothing) {
  EXPECT_EQ(ModelStamp(temp_.At("absent")), "");
  const std::string before = ModelStamp(temp_.At("models/b"));
  EXPECT_NE(before, "");
  EXPECT_EQ(ModelStamp(temp_.At("models/b")), before);
  Write("b/more.json", "");
  EXPECT_NE(ModelStamp(temp_.At("models/b")), before);
}

}  // namespace
}  // namespace longhaul::agent
