#include "clients/cli/rpc_error.h"

#include <gmock/gmock.h>
#include <grpcpp/support/status.h>

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

// Every reason that a person may meet, from the scheduler, the client and what longhaul-tool does: MakeError's second
// argument.
std::set<std::string> ReasonsOfTheSources() {
  const std::regex make_error(R"re(MakeError\(\s*(?:absl::StatusCode::k\w+|\w+\.code\(\)),\s*"([A-Z_]+)")re");
  std::set<std::string> reasons;
  for (const char* folder :
       {"server", "storage", "wire", "base", "model", "clients", "worker/formats", "worker/data"}) {
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

TEST(RpcErrorTest, EveryReasonHasAHint) {
  // Said to agents and balancers, to whom nobody types, or of a bug.
  const std::set<std::string> elsewhere = {"WORKER_TOO_OLD",    "WORKER_TOO_NEW", "SESSION_CLOSED", "LEASE_FENCED",
                                           "LOG_GAP",           "INVALID_PATH",   "INVALID_SIZE",   "PROCESS_GONE",
                                           "INVALID_COMMAND",   "FAILPOINT",      "WORKER_OWNED",   "OTHER_WORKER",
                                           "ROWS_OUT_OF_RANGE", "UNKNOWN_SERVICE"};
  const std::set<std::string> reasons = ReasonsOfTheSources();
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

// gRPC's words for what went wrong with a connection, as they were seen.
TEST(RpcErrorTest, AConnectionThatFailsSaysWhy) {
  const auto told = [](const std::string& words) {
    return DescribeError(FromGrpcStatus(grpc::Status(grpc::StatusCode::UNAVAILABLE, words), "h:1"));
  };
  const std::string prefix = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: ";
  const std::string ssl = prefix + "Ssl handshake failed: SSL_ERROR_SSL: error:0A000086:SSL routines::";
  EXPECT_THAT(told(prefix + "Failed to connect to remote host: Connection refused"),
              HasSubstr("nothing listens there\n  what to do: start the scheduler"));
  EXPECT_THAT(told(ssl + "wrong version number"), HasSubstr("speaks no TLS\n  what to do: leave out --tls"));
  EXPECT_THAT(told(ssl + "certificate verify failed"), HasSubstr("what to do: give --tls-ca FILE"));
  EXPECT_THAT(told(prefix + "Peer name x is not in peer certificate"), HasSubstr("--tls-server-name NAME"));
  EXPECT_THAT(told(prefix + "Socket closed"), HasSubstr("what to do: a scheduler with TLS does that"));
  // One that was there: a scheduler that is restarted is no mistake in TLS.
  EXPECT_THAT(told("Socket closed"), HasSubstr("cannot be reached: the connection broke off\n  what to do: start the"));
  EXPECT_THAT(told("recvmsg:Connection reset by peer"), Not(HasSubstr("--tls-ca")));
  EXPECT_THAT(told("of tomorrow"),
              HasSubstr("the scheduler at h:1 cannot be reached: of tomorrow\n  what to do: start"));
}

// Scripts rely on it.
TEST(RpcErrorTest, ReasonsKeepTheirExitCodes) {
  const auto code = [](absl::StatusCode status, const char* reason) {
    return ExitCodeFor(MakeError(status, reason, "text"));
  };
  EXPECT_EQ(code(absl::StatusCode::kFailedPrecondition, "TOKEN_NEEDS_TLS"), kInvalid);
  EXPECT_EQ(code(absl::StatusCode::kUnimplemented, "MODEL_UNSUPPORTED"), kInvalid);
  EXPECT_EQ(code(absl::StatusCode::kInvalidArgument, "TLS_MATERIAL"), kInvalid);
  EXPECT_EQ(code(absl::StatusCode::kFailedPrecondition, "EXCEEDS_EVERY_DEVICE"), kJobFailed);
  EXPECT_EQ(code(absl::StatusCode::kNotFound, "JOB_NOT_FOUND"), kNotFound);
  EXPECT_EQ(code(absl::StatusCode::kNotFound, "LOCAL_FILE"), kInternal);
  EXPECT_EQ(code(absl::StatusCode::kFailedPrecondition, "ILLEGAL_TRANSITION"), kRefused);
  EXPECT_EQ(code(absl::StatusCode::kPermissionDenied, "SCOPE_MISSING"), kPermission);
  EXPECT_EQ(code(absl::StatusCode::kUnavailable, ""), kUnreachable);
  const absl::Status absent = MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND", "text");
  EXPECT_EQ(ExitCodeFor(LocalFileError(absent)), kInternal);
  EXPECT_EQ(ErrorReason(LocalFileError(MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "text"))),
            "JOB_NOT_FOUND");
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
