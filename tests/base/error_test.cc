#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "absl/strings/cord.h"
#include "base/check.h"
#include "base/errno_status.h"
#include "base/status_macros.h"

namespace longhaul {
namespace {

std::string MessageOf(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

TEST(Error, CarriesReasonAndViolations) {
  const absl::Status status = MakeError(absl::StatusCode::kNotFound, "MODEL_UNKNOWN", "no such model",
                                        {{"spec.model", "is 'x'; must be known"}, {"spec.suffix", ""}});
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "no such model");
  EXPECT_EQ(ErrorReason(status), "MODEL_UNKNOWN");
  const std::vector<FieldViolation> violations = ErrorViolations(status);
  ASSERT_EQ(violations.size(), 2u);
  EXPECT_EQ(violations[0].field, "spec.model");
  EXPECT_EQ(violations[0].description, "is 'x'; must be known");
  EXPECT_EQ(violations[1].field, "spec.suffix");
  EXPECT_EQ(violations[1].description, "");
}

TEST(Error, AnyTextSurvives) {
  const std::string odd("3:abc\n\0,:\xff\xfe 12:\xe2\x82\xac", 19);
  const absl::Status status = MakeError(absl::StatusCode::kInternal, odd, odd, {{odd, odd}, {"", odd}});
  EXPECT_EQ(ErrorReason(status), odd);
  ASSERT_EQ(ErrorViolations(status).size(), 2u);
  EXPECT_EQ(ErrorViolations(status)[0].field, odd);
  EXPECT_EQ(ErrorViolations(status)[0].description, odd);
  EXPECT_EQ(ErrorViolations(status)[1].field, "");
  EXPECT_EQ(ErrorViolations(status)[1].description, odd);
}

TEST(Error, MetadataIsForTheProgramThatReads) {
  const absl::Status status = MakeError(absl::StatusCode::kAborted, "OPENED_SINCE", "it was", {{"f", "d"}});
  const absl::Status told = WithMetadata(WithMetadata(status, "opening", "o-1"), "other", "");
  EXPECT_EQ(ErrorMetadata(told, "opening"), "o-1");
  EXPECT_EQ(ErrorMetadata(told, "none"), "");
  EXPECT_EQ(ErrorMetadata(told), (std::map<std::string, std::string>{{"opening", "o-1"}, {"other", ""}}));
  EXPECT_EQ(ErrorMetadata(Annotate(told, "x"), "opening"), "o-1");
  EXPECT_EQ(ErrorReason(told), "OPENED_SINCE");
  EXPECT_EQ(ErrorViolations(told).size(), 1u);
  EXPECT_TRUE(ErrorMetadata(WithAdvice(status, "do it")).empty());
  EXPECT_TRUE(WithMetadata(absl::OkStatus(), "a", "b").ok());
}

TEST(Error, PlainStatusesCarryNothing) {
  EXPECT_EQ(ErrorReason(absl::OkStatus()), "");
  EXPECT_EQ(ErrorReason(absl::InternalError("x")), "");
  EXPECT_TRUE(ErrorViolations(absl::InternalError("x")).empty());
}

TEST(Error, WhatALostConnectionLooksLike) {
  EXPECT_TRUE(IsConnectionError(absl::UnavailableError("no route")));
  EXPECT_TRUE(IsConnectionError(MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "x")));
  // gRPC's own words for a reset in the middle of a message.
  EXPECT_TRUE(IsConnectionError(absl::InternalError("Received RST_STREAM with error code 2")));
  EXPECT_TRUE(IsConnectionError(absl::UnknownError("Stream removed")));
  // A server's answer has a reason.
  EXPECT_FALSE(IsConnectionError(MakeError(absl::StatusCode::kInternal, "INTERNAL", "a bug")));
  EXPECT_FALSE(IsConnectionError(MakeError(absl::StatusCode::kUnknown, "UNKNOWN", "x")));
  EXPECT_FALSE(IsConnectionError(absl::NotFoundError("x")));
  EXPECT_FALSE(IsConnectionError(absl::OkStatus()));
}

TEST(Error, InvalidField) {
  const absl::Status status = InvalidField("spec.hyperparameters.lora_rank", "is 0; must be 1 to 1024");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorReason(status), "INVALID_FIELD");
  EXPECT_EQ(MessageOf(status), "spec.hyperparameters.lora_rank is 0; must be 1 to 1024");
  ASSERT_EQ(ErrorViolations(status).size(), 1u);
  EXPECT_EQ(ErrorViolations(status)[0].field, "spec.hyperparameters.lora_rank");
}

TEST(Error, AnnotateKeepsEverythingElse) {
  absl::Status status = InvalidField("a", "is bad");
  status.SetPayload("other", absl::Cord("kept"));
  const absl::Status annotated = Annotate(status, "line 3");
  EXPECT_EQ(annotated.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MessageOf(annotated), "line 3: a is bad");
  EXPECT_EQ(ErrorReason(annotated), "INVALID_FIELD");
  ASSERT_EQ(ErrorViolations(annotated).size(), 1u);
  EXPECT_EQ(ErrorViolations(annotated)[0].description, "is bad");
  ASSERT_TRUE(annotated.GetPayload("other").has_value());
  EXPECT_EQ(*annotated.GetPayload("other"), "kept");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "line 3").ok());
}

TEST(Error, ErrnoCodes) {
  const auto expect = [](int error_number, absl::StatusCode code, const std::string& reason) {
    const absl::Status status = ErrnoStatus("open", "/some/path", error_number);
    EXPECT_EQ(status.code(), code) << error_number;
    EXPECT_EQ(ErrorReason(status), reason) << error_number;
    EXPECT_EQ(MessageOf(status).find("cannot open /some/path: "), 0u) << status;
  };
  expect(ENOSPC, absl::StatusCode::kResourceExhausted, "DISK_FULL");
  expect(ENOENT, absl::StatusCode::kNotFound, "FILE_NOT_FOUND");
  expect(EACCES, absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED");
  expect(EROFS, absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED");
  expect(ENOMEM, absl::StatusCode::kResourceExhausted, "HOST_OOM");
  expect(EIO, absl::StatusCode::kInternal, "IO_ERROR");
  EXPECT_NE(MessageOf(ErrnoStatus("open", "p", ENOENT)).find("No such file"), std::string::npos);
}

absl::StatusOr<int> Half(int n) {
  if (n % 2 != 0) return InvalidField("n", "is odd");
  return n / 2;
}

absl::StatusOr<int> Quarter(int n) {
  LH_RETURN_IF_ERROR(n < 0 ? InvalidField("n", "is negative") : absl::OkStatus());
  LH_ASSIGN_OR_RETURN(const int half, Half(n));
  LH_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

TEST(Error, StatusMacrosReturnEarly) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(MessageOf(Quarter(6).status()), "n is odd");
  EXPECT_EQ(MessageOf(Quarter(-4).status()), "n is negative");
}

TEST(CheckDeathTest, PrintsExpressionAndDetail) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(LH_CHECK(1 + 1 == 3, "sum is 2"), "CHECK failed: 1 \\+ 1 == 3 at .*error_test.cc:[0-9]+: sum is 2");
  EXPECT_DEATH(LH_CHECK(false), "CHECK failed: false at ");
  LH_CHECK(true);
}

}  // namespace
}  // namespace longhaul
