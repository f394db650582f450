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
    watch_.emplace(
        std::vector<std::string>{temp_.At("models")},
        [this](const std::set<std::string>& changing, std::set<std::string>* unread) -> absl::StatusOr<ModelOffer> {
          ++reads_;
          changing_ = changing;
          *unread = unread_;
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
  std::set<std::string> changing_;  // as it was told to the last read
  std::set<std::string> unread_;    // as the next read says
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
  EXPECT_TRUE(watch_->Look(true)->has_value());
  EXPECT_EQ(changing_.count(temp_.At("models/a.gguf")), 1u) << "not what may still be written";
  EXPECT_TRUE(Changed()) << "it has settled";
  EXPECT_TRUE(changing_.empty());
  EXPECT_FALSE(Changed());
}

// A copy of an hour keeps no other model back, and is read when it is there.
TEST_F(ModelWatchTest, OneModelDoesNotWaitForAnother) {
  auto grow = [this, n = size_t{0}]() mutable { Write("big.gguf", std::string(++n, 'x')); };
  grow();
  EXPECT_FALSE(Changed());
  Write("b/config.json", "{\"layers\": 2}");
  grow();
  EXPECT_FALSE(Changed());
  grow();
  EXPECT_TRUE(Changed());
  EXPECT_EQ(changing_, (std::set<std::string>{temp_.At("models"), temp_.At("models/big.gguf")}));
  grow();
  EXPECT_FALSE(Changed());
  EXPECT_TRUE(Changed());
  EXPECT_TRUE(changing_.empty());
  EXPECT_FALSE(Changed());
  EXPECT_EQ(reads_, 2);
}

// Back to what was last read, by way of a look that told it away.
TEST_F(ModelWatchTest, WhatWasLeftOutWhileItChangedIsReadAgainThoughItIsAsItWas) {
  ASSERT_TRUE(RenameFile(temp_.At("models/a.gguf"), temp_.At("kept")).ok());
  EXPECT_TRUE(watch_->Look(true)->has_value());
  ASSERT_TRUE(RenameFile(temp_.At("kept"), temp_.At("models/a.gguf")).ok());
  EXPECT_FALSE(Changed());
  EXPECT_TRUE(Changed());
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

TEST_F(ModelWatchTest, WhatWasLeftUnreadIsReadByTheNextLook) {
  EXPECT_FALSE(Changed());
  watch_->Unread({temp_.At("models/a.gguf"), temp_.At("models/b")});
  unread_ = {temp_.At("models/b")};
  EXPECT_TRUE(Changed());
  EXPECT_TRUE(changing_.empty());
  unread_.clear();
  EXPECT_TRUE(Changed());
  EXPECT_FALSE(Changed());
  EXPECT_EQ(reads_, 2);
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
