#include "wire/enum_names.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "longhaul/v1/job.pb.h"
#include "longhaul/v1/trainer.pb.h"

namespace longhaul::wire {
namespace {

TEST(EnumNamesTest, LowerCaseWithoutThePrefix) {
  EXPECT_EQ(EnumName(v1::LEARNING_RATE_SCHEDULE_COSINE), "cosine");
  EXPECT_EQ(EnumName(v1::BASE_STORAGE_AS_STORED), "as_stored");
  EXPECT_EQ(EnumName(v1::QUEUED), "queued");
  EXPECT_EQ(EnumName(v1::WAITING_FOR_HOST_RAM), "waiting_for_host_ram");
  EXPECT_EQ(EnumName(v1::TRAINER_EXIT_LEASE_LOST), "lease_lost");
  EXPECT_EQ(EnumName(v1::BASE_STORAGE_UNSPECIFIED), "");
  EXPECT_EQ(EnumName(static_cast<v1::BaseStorage>(77)), "unknown (77)");
  EXPECT_EQ(EnumNames(*v1::LearningRateSchedule_descriptor()), "linear, cosine, constant");
}

TEST(EnumNamesTest, ParsesEveryNameOfEveryEnumBack) {
  const auto* file = v1::JobSpec::descriptor()->file();
  ASSERT_GT(file->enum_type_count(), 5);
  for (int i = 0; i < file->enum_type_count(); ++i) {
    const auto& type = *file->enum_type(i);
    for (int j = 0; j < type.value_count(); ++j) {
      if (type.value(j)->number() == 0) continue;
      EXPECT_EQ(*ParseEnumName(type, EnumName(type, type.value(j)->number()), "x"), type.value(j)->number());
      EXPECT_EQ(*ParseEnumName(type, type.value(j)->name(), "x"), type.value(j)->number());
    }
  }
}

TEST(EnumNamesTest, AnUnknownNameGetsTheNearest) {
  const auto status =
      ParseEnumName(*v1::LearningRateSchedule_descriptor(), "cosin", "spec.hyperparameters.schedule").status();
  EXPECT_EQ(ErrorReason(status), "INVALID_FIELD");
  EXPECT_EQ(ErrorViolations(status).at(0).field, "spec.hyperparameters.schedule");
  EXPECT_NE(status.message().find("did you mean \"cosine\"?"), absl::string_view::npos) << status;
  EXPECT_FALSE(ParseEnumName(*v1::LearningRateSchedule_descriptor(), "unspecified", "x").ok());
  EXPECT_FALSE(ParseEnumName(*v1::LearningRateSchedule_descriptor(), "", "x").ok());
}

}  // namespace
}  // namespace longhaul::wire
