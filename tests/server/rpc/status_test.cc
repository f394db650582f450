#include "server/rpc/status.h"

#include "base/error.h"
#include "base/limits.h"
#include "server/rpc/gate.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

TEST(StatusTest, OkHasNoDetails) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(ToGrpcStatus(absl::OkStatus()).error_details(), "");
}

TEST(StatusTest, CarriesReasonDomainAndViolations) {
  const grpc::Status status = ToGrpcStatus(InvalidField("spec.model", "is \"\"; must name a model"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "spec.model is \"\"; must name a model");
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, "INVALID_FIELD");
  EXPECT_EQ(details.domain, "longhaul.v1");
  EXPECT_EQ(details.Of("spec.model"), "is \"\"; must name a model");
}

TEST(StatusTest, AnErrorWithoutReasonNamesItsCode) {
  EXPECT_EQ(DetailsOf(ToGrpcStatus(absl::UnavailableError("later"))).reason, "UNAVAILABLE");
}

TEST(StatusTest, EveryCodeIsTheSameNumber) {
  for (int code = 1; code <= 16; ++code) {
    EXPECT_EQ(static_cast<int>(ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "x")).error_code()),
              code);
  }
}

TEST(StatusTest, FitsIntoTrailingMetadataHoweverMuchIsWrong) {
  std::vector<FieldViolation> violations;
  std::string message;
  for (int i = 0; i < 1000; ++i) {
    violations.push_back({"spec.field" + std::to_string(i), std::string(300, 'x')});
    message += "spec.field" + std::to_string(i) + " \xC3\xA4; ";  // two bytes a letter, three each on the wire
  }
  const grpc::Status status =
      ToGrpcStatus(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", message, violations));
  EXPECT_LE(static_cast<int64_t>(status.error_message().size()), limits::kMaxErrorMessageBytes + 8);
  EXPECT_LE(static_cast<int64_t>(status.error_details().size()), limits::kMaxErrorDetailBytes + 600);
  const ErrorDetails details = DetailsOf(status);
  ASSERT_FALSE(details.violations.empty());
  EXPECT_EQ(details.violations.back().description(),
            "and " + std::to_string(1000 - (details.violations.size() - 1)) + " more");
}

TEST(StatusTest, NeverCutsACharacterInTwo) {
  for (int pad = 0; pad < 4; ++pad) {
    std::string message(static_cast<size_t>(pad), 'a');
    while (message.size() < 4000) message += "\xE2\x82\xAC";  // the euro sign
    const std::string cut = ToGrpcStatus(absl::InternalError(message)).error_message();
    ASSERT_GT(cut.size(), 4u);
    const std::string kept = cut.substr(0, cut.size() - 4);  // without " ..."
    EXPECT_EQ((kept.size() - static_cast<size_t>(pad)) % 3, 0u);
  }
}

TEST(PeerTest, HostsComeWithoutPortsAndBrackets) {
  EXPECT_EQ(HostOfPeer("ipv4:127.0.0.1:50000"), "127.0.0.1");
  EXPECT_EQ(HostOfPeer("ipv6:[::1]:50000"), "::1");
  EXPECT_EQ(HostOfPeer("ipv6:%5B2001:db8::1%5D:50000"), "2001:db8::1");
  EXPECT_EQ(HostOfPeer("unix:/run/x"), "/run/x");
  EXPECT_EQ(HostOfPeer("inproc"), "inproc");
  EXPECT_EQ(HostOfPeer(""), "");
}

}  // namespace
}  // namespace longhaul::server
