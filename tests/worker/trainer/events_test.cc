#include "worker/trainer/events.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>

#include "base/errno_status.h"
#include "base/error.h"
#include "base/limits.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/attempt/exit_codes.h"

namespace longhaul::trainer {
namespace {

TEST(EventsTest, StampsTimeAndSurvivesForeignBytes) {
  TempDir temp;
  FakeClock clock;
  auto events = Events::Open(temp.At("events.log"), &clock);
  ASSERT_TRUE(events.ok());
  events->Warn("bytes \xff\xfe from a file");
  events->Warn(std::string(100'000, 'x'));
  v1::TrainerEvent event;
  *event.mutable_exit() = ExitOfError(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL", "bad \xc3 name"));
  events->AddDurable(event);
  ASSERT_TRUE(events->status().ok());
  attempt::EventLogReader reader(temp.At("events.log"));
  const auto read = reader.ReadNew();
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->size(), 3u);
  EXPECT_EQ(read->at(0).wall_micros(), clock.WallMicros());
  EXPECT_EQ(read->at(0).warning().message(), "bytes ?? from a file");
  EXPECT_EQ(static_cast<int64_t>(read->at(1).warning().message().size()), limits::kMaxTrainerMessageBytes);
  EXPECT_EQ(read->at(2).exit().message(), "bad ? name");
}

TEST(ExitOfErrorTest, EveryReasonHasItsFailure) {
  const struct {
    const char* reason;
    v1::Reason failure;
    bool user_can_fix;
    bool device_at_fault = false;
  } cases[] = {
      {"INVALID_DATASET", v1::INVALID_DATASET, true},
      {"INVALID_MODEL", v1::INVALID_MODEL, true},
      {"MODEL_UNSUPPORTED", v1::INVALID_MODEL, true},
      {"NON_FINITE_LOSS", v1::NON_FINITE_LOSS, true},
      {"HOST_OOM", v1::HOST_OOM, false},
      {"DISK_FULL", v1::DISK_FULL, false},
      {"RESUME_NOT_IDENTICAL", v1::RESUME_NOT_IDENTICAL, true},
      {"PLAN_MISMATCH", v1::PLAN_MISMATCH, false},
      {"INVALID_FIELD", v1::INVALID_FIELD, true},
      {"INVALID_CHECKPOINT", v1::INVALID_CHECKPOINT, false},
      {"DEVICE_OOM", v1::DEVICE_OOM, false},
      {"DEVICE_MEMORY_TAKEN", v1::DEVICE_FAULT, false},
      {"DEVICE_FAULT", v1::DEVICE_FAULT, false, true},
      {"NO_CUDA_DEVICE", v1::DEVICE_FAULT, false, true},
      {"CUDA_DRIVER_TOO_OLD", v1::DEVICE_FAULT, false},
      {"CUDA_DEVICE_TOO_OLD", v1::DEVICE_FAULT, false},
      {"CUDA_LIBRARY_MISSING", v1::DEVICE_FAULT, false},
      {"NO_CUDA_KERNELS", v1::DEVICE_FAULT, false},
      {"CUDNN_UNAVAILABLE", v1::DEVICE_FAULT, false},
      {"ANYTHING_ELSE", v1::INTERNAL, false},
  };
  for (const auto& c : cases) {
    const v1::TrainerExit exit = ExitOfError(MakeError(absl::StatusCode::kInternal, c.reason, "what happened"));
    EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_FAILED);
    EXPECT_EQ(exit.failure(), c.failure) << c.reason;
    EXPECT_EQ(exit.user_can_fix(), c.user_can_fix) << c.reason;
    EXPECT_EQ(exit.device_at_fault(), c.device_at_fault) << c.reason;
    EXPECT_EQ(exit.message(), "what happened");
  }
}

TEST(ExitOfErrorTest, ACudaErrorNamesItsOpAndStep) {
  const kernels::CudaError fault("RmsNorm", "cudaLaunchKernel", 700, "an illegal memory access was encountered");
  const v1::TrainerExit exit = ExitOfError(CudaFailure(fault, "in step 7"));
  EXPECT_EQ(exit.failure(), v1::DEVICE_FAULT);
  EXPECT_EQ(exit.message().rfind(std::string("in step 7, ") + fault.what(), 0), 0u) << exit.message();
  EXPECT_NE(exit.message().find("RmsNorm"), std::string::npos);
  EXPECT_NE(exit.message().find("CUDA_LAUNCH_BLOCKING=1"), std::string::npos) << exit.message();
  const kernels::CudaError oom("DeviceBuffer", "cudaMalloc", 2, "out of memory");
  EXPECT_EQ(ExitOfError(CudaFailure(oom, "in step 1")).failure(), v1::DEVICE_OOM);
}

// cuDNN's front end has codes of its own, and 2 is none of memory there.
TEST(ExitOfErrorTest, ALibrarysCodesAreNotTheRuntimes) {
  using kernels::CudaShortage;
  const struct {
    int code;
    CudaShortage shortage;
    v1::Reason failure;
  } cases[] = {{2, CudaShortage::kNone, v1::DEVICE_FAULT},
               {3, CudaShortage::kDevice, v1::DEVICE_OOM},
               {4003, CudaShortage::kHost, v1::HOST_OOM}};
  for (const auto& c : cases) {
    const kernels::CudaError error("Sdpa", "cudnn graph", c.code, "what it said", c.shortage);
    EXPECT_EQ(ExitOfError(CudaFailure(error, "in step 1")).failure(), c.failure) << c.code;
  }
}

TEST(ExitOfErrorTest, WhatTheSystemHadNoMemoryForIsHostOom) {
  const v1::TrainerExit exit = ExitOfError(Annotate(ErrnoStatus("map", "/models/m.gguf", ENOMEM), "the model"));
  EXPECT_EQ(exit.failure(), v1::HOST_OOM);
  EXPECT_FALSE(exit.user_can_fix());
  EXPECT_EQ(ExitCodeOf(exit), attempt::kExitHostOom);
}

TEST(ExitOfErrorTest, WithBlockingLaunchesTheOpIsTheOneAtFault) {
  ASSERT_EQ(setenv("CUDA_LAUNCH_BLOCKING", "1", 1), 0);
  const kernels::CudaError fault("GatherRows", "kernel launch", 719, "unspecified launch failure");
  EXPECT_EQ(ExitOfError(CudaFailure(fault, "in step 7")).message(), std::string("in step 7, ") + fault.what());
  ASSERT_EQ(unsetenv("CUDA_LAUNCH_BLOCKING"), 0);
}

TEST(ExitCodeTest, AreTheDocumentedOnes) {
  EXPECT_EQ(ExitCodeOf(ExitOf(v1::TRAINER_EXIT_SUCCEEDED, "")), attempt::kExitSucceeded);
  EXPECT_EQ(ExitCodeOf(ExitOf(v1::TRAINER_EXIT_CHECKPOINTED, "")), attempt::kExitCheckpointed);
  EXPECT_EQ(ExitCodeOf(ExitOf(v1::TRAINER_EXIT_CANCELLED, "")), attempt::kExitCancelled);
  EXPECT_EQ(ExitCodeOf(ExitOf(v1::TRAINER_EXIT_LEASE_LOST, "")), attempt::kExitLeaseLost);
  EXPECT_EQ(ExitCodeOf(ExitOf(v1::TRAINER_EXIT_FAILED, "")), attempt::kExitFailed);
}

}  // namespace
}  // namespace longhaul::trainer
