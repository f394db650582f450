#include "server/core/quota.h"

#include "base/error.h"
#include "base/units.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

TEST(QuotaTest, Parses) {
  Quotas quotas;
  ASSERT_TRUE(ParseQuota("team:jobs=4,vram=80GiB,ram=64GiB,threads=16", &quotas).ok());
  ASSERT_TRUE(ParseQuota("*:jobs=1", &quotas).ok());
  ASSERT_TRUE(ParseQuota("with:colon:threads=3", &quotas).ok());
  EXPECT_EQ(QuotaOf(quotas, "team"), (Quota{4, 80 * kGiB, 64 * kGiB, 16}));
  EXPECT_EQ(QuotaOf(quotas, "with:colon"), (Quota{0, 0, 0, 3}));
  EXPECT_EQ(QuotaOf(quotas, "another"), (Quota{1, 0, 0, 0}));
  EXPECT_EQ(QuotaOf({}, "another"), Quota());
}

TEST(QuotaTest, NamesWhatIsWrong) {
  for (const char* text : {"", ":", "team", "team:", ":jobs=1", "team:jobs", "team:jobs=", "team:jobs=0",
                           "team:jobs=-1", "team:jobs=1x", "team:jobs=99999999999", "team:vram=much", "team:vram=0",
                           "team:gpus=1", "team:jobs=1,", "team:jobs=1,,ram=1GiB"}) {
    Quotas quotas;
    const absl::Status status = ParseQuota(text, &quotas);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(std::string(status.message()).find("--quota"), std::string::npos) << status;
    EXPECT_TRUE(quotas.empty()) << text;
  }
  Quotas quotas;
  ASSERT_TRUE(ParseQuota("team:jobs=1", &quotas).ok());
  EXPECT_FALSE(ParseQuota("team:jobs=2", &quotas).ok());
  EXPECT_EQ(quotas.at("team").jobs, 1);
}

}  // namespace
}  // namespace longhaul::server
