#include "clients/cli/rpc_error.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "base/error.h"

namespace longhaul::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Hint(absl::StatusCode code, const std::string& reason) { return HintFor(MakeError(code, reason, "text")); }

// Every reason that the code behind the API gives: MakeError's second argument.
std::set<std::string> ReasonsOfTheScheduler() {
  const std::regex make_error(R"re(MakeError\(\s*(?:absl::StatusCode::k\w+|\w+\.code\(\)),\s*"([A-Z_]+)")re");
  std::set<std::string> reasons;
  for (const char* folder : {"server", "storage", "wire", "base", "model"}) {
    const std::filesystem::path root = std::filesystem::path(LONGHAUL_SOURCE_DIR) / folder;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
      if (entry.path().extension() != ".cc") continue;
      std::stringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      const std::string source = text.str();
      for (std::sregex_iterator it(source.begin(), source.end(), make_error), end; it != end; ++it) {
        reasons.insert((*it)[1]);
      }
    }
  }
  return reasons;
}

TEST(RpcErrorTest, EveryReasonOfTheSchedulerHasAHint) {
  // Said to agents, to whom nobody types; at a daemon's start; by longhauld's own commands; or by what only the trainer
  // and the tools do.
  const std::set<std::string> elsewhere = {
      "WORKER_TOO_OLD", "WORKER_TOO_NEW", "SESSION_CLOSED",  "LEASE_FENCED",    "LOG_GAP",         "BAD_ADDRESS",
      "TLS_REQUIRED",   "SCHEMA_TOO_NEW", "NOT_OURS",        "FILE_EXISTS",     "FILE_TOO_LARGE",  "FILE_TOO_SHORT",
      "INVALID_PATH",   "INVALID_SIZE",   "PROCESS_GONE",    "INVALID_COMMAND", "LOCKED",          "FAILPOINT",
      "WORKER_OWNED",   "OTHER_WORKER",   "TOO_MANY_TOKENS", "TOKEN_NOT_FOUND", "SCHEMA_MISMATCH", "BAD_DESTINATION",
      "NO_DATABASE",    "SCHEMA_TOO_OLD"};
  const std::set<std::string> reasons = ReasonsOfTheScheduler();
  ASSERT_GE(reasons.size(), 40u) << "the sources are not where this test looks";
  const std::string none = Hint(absl::StatusCode::kAborted, "NO_SUCH_REASON");
  for (const std::string& reason : reasons) {
    if (elsewhere.count(reason) > 0) continue;
    EXPECT_NE(Hint(absl::StatusCode::kAborted, reason), none) << reason;
  }
}

TEST(RpcErrorTest, OnlyAnUnreachableSchedulerIsToBeStarted) {
  EXPECT_THAT(Hint(absl::StatusCode::kUnavailable, ""), HasSubstr("start the scheduler"));
  for (const char* reason : {"BLOB_BUSY", "STORE_UNAVAILABLE", "TOO_MANY_TRANSFERS", "SHUTTING_DOWN", "OF_TOMORROW"}) {
    EXPECT_THAT(Hint(absl::StatusCode::kUnavailable, reason), Not(HasSubstr("start the scheduler"))) << reason;
  }
}

TEST(RpcErrorTest, EveryErrorSaysWhatToDo) {
  for (int code = 1; code <= 16; ++code) {
    EXPECT_THAT(DescribeError(MakeError(static_cast<absl::StatusCode>(code), "", "text")), HasSubstr("what to do: "))
        << code;
  }
}

int Count(const std::string& text, const std::string& word) {
  int count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

TEST(RpcErrorTest, NothingIsSaidTwice) {
  const std::string one = "cpu-2t: needs 9 GiB (weights 1 GiB, activations 8 GiB), has 2 GiB";
  const std::string other = "gpu-80: needs 99 GiB (weights 1 GiB, activations 98 GiB), has 80 GiB";
  const std::string single = DescribeError(MakeError(absl::StatusCode::kFailedPrecondition, "EXCEEDS_EVERY_DEVICE",
                                                     "fits nowhere; " + one, {{"spec", one}}));
  EXPECT_EQ(Count(single, "activations"), 1) << single;
  EXPECT_THAT(single, HasSubstr("error: fits nowhere; cpu-2t: needs 9 GiB"));
  const std::string both =
      DescribeError(MakeError(absl::StatusCode::kFailedPrecondition, "EXCEEDS_EVERY_DEVICE",
                              "fits nowhere; " + one + "; " + other, {{"spec", one}, {"spec", other}}));
  EXPECT_EQ(Count(both, "activations"), 2) << both;
  EXPECT_THAT(both, HasSubstr("error: fits nowhere [EXCEEDS_EVERY_DEVICE]\n  spec: " + one + "\n  spec: " + other));
  const std::string fields =
      DescribeError(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", "a is 0; must be 1; b is absent",
                              {{"a", "is 0; must be 1"}, {"b", "is absent"}}));
  EXPECT_THAT(fields, HasSubstr("error: 2 values are wrong [INVALID_FIELD]\n  a: is 0; must be 1\n  b: is absent\n"));
  const std::string more = DescribeError(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD",
                                                   "the body is wrong", {{"a", "is 0"}, {"b", "is 1"}}));
  EXPECT_THAT(more, HasSubstr("error: the body is wrong [INVALID_FIELD]\n  a: is 0\n  b: is 1\n"));
}

}  // namespace
}  // namespace longhaul::cli
