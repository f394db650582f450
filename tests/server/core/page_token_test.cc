#include "server/core/page_token.h"

#include "base/error.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

TEST(PageTokenTest, ReadsItsOwnAndRefusesOthers) {
  JobFilter filter;
  filter.project = "default";
  filter.page_token = MakePageToken(filter, 1234);
  ASSERT_TRUE(ReadPageToken(filter).ok());
  EXPECT_EQ(*ReadPageToken(filter), 1234u);

  JobFilter other = filter;
  other.oldest_first = true;  // the token would continue in the wrong direction
  EXPECT_EQ(ReadPageToken(other).status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string bad : {"x", "1234", "99999999999999999999999999999999999999", "-1"}) {
    filter.page_token = bad;
    const absl::Status status = ReadPageToken(filter).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(ErrorViolations(status).at(0).field, "page_token");
  }
  filter.page_token = MakePageToken(filter, 5) + "x";
  EXPECT_FALSE(ReadPageToken(filter).ok());
}

}  // namespace
}  // namespace longhaul::server
