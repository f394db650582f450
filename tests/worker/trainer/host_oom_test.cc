// What a trainer says where this machine has no memory for it: a bug of ours, never the model's fault and never a crash
// to try again.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/env.h"
#include "base/error.h"
#include "dnnl.hpp"
#include "kernels/cuda_error.h"
#include "tests/fakes/tiny_model.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/attempt/event_log.h"
#include "worker/attempt/exit_codes.h"
#include "worker/trainer/events.h"
#include "worker/trainer/exceptions.h"
#include "worker/trainer/inputs.h"

namespace longhaul::trainer {
namespace {

// More than any limit of these tests, on no disk: nothing is written to it.
constexpr int64_t kHugeBytes = int64_t{256} << 30;

// While it lives this process may map `more_bytes` more than it has.
class AddressSpaceLimit {
 public:
  explicit AddressSpaceLimit(int64_t more_bytes) {
    LH_CHECK(::getrlimit(RLIMIT_AS, &before_) == 0);
    int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(pages * ::sysconf(_SC_PAGESIZE) + more_bytes);
    LH_CHECK(::setrlimit(RLIMIT_AS, &limit) == 0);
  }
  ~AddressSpaceLimit() { ::setrlimit(RLIMIT_AS, &before_); }
  AddressSpaceLimit(const AddressSpaceLimit&) = delete;
  AddressSpaceLimit& operator=(const AddressSpaceLimit&) = delete;

 private:
  rlimit before_{};
};

class HostOomTest : public ::testing::Test {
 protected:
  HostOomTest() { WriteTinyModel(Model()); }
  std::string Model() const { return temp_.At("model"); }
  void MakeTheModelHuge() { ASSERT_EQ(::truncate((Model() + "/model.safetensors").c_str(), kHugeBytes), 0); }

  TempDir temp_;
};

TEST_F(HostOomTest, AModelThatCannotBeMappedIsOurBug) {
  MakeTheModelHuge();
  absl::Status opened;
  {
    const AddressSpaceLimit limit(int64_t{4} << 30);
    opened = OpenModel(Model()).status();
  }
  const v1::TrainerExit exit = ExitOfError(opened);
  EXPECT_EQ(exit.failure(), v1::HOST_OOM) << opened;
  EXPECT_FALSE(exit.user_can_fix());
  // The same file is refused for what it is where it can be mapped.
  EXPECT_EQ(ExitOfError(OpenModel(Model()).status()).failure(), v1::INVALID_MODEL);
}

// Reading its own memory where nothing is mapped gives a process EIO, as a disk that fails does.
TEST_F(HostOomTest, AModelThatCannotBeReadMayBeReadByAnotherAttempt) {
  ASSERT_TRUE(RemoveFile(Model() + "/config.json").ok());
  ASSERT_EQ(::symlink("/proc/self/mem", (Model() + "/config.json").c_str()), 0);
  const absl::Status opened = OpenModel(Model()).status();
  EXPECT_EQ(ErrorReason(opened), "IO_ERROR") << opened;
  const v1::TrainerExit exit = ExitOfError(opened);
  EXPECT_EQ(exit.failure(), v1::INTERNAL) << opened;
  EXPECT_FALSE(exit.user_can_fix());
}

TEST_F(HostOomTest, WhatIsThrownHasItsReason) {
  EXPECT_EQ(ExitOfException(std::bad_alloc()).failure(), v1::HOST_OOM);
  EXPECT_EQ(ExitOfException(std::bad_array_new_length()).failure(), v1::HOST_OOM);
  EXPECT_EQ(ExitOfException(dnnl::error(dnnl_out_of_memory, "could not create a primitive")).failure(), v1::HOST_OOM);
  EXPECT_EQ(ExitOfException(dnnl::error(dnnl_invalid_arguments, "could not create a primitive")).failure(),
            v1::INTERNAL);
  EXPECT_EQ(ExitOfException(kernels::CudaError("Adam", "cudaLaunchKernel", 700, "")).failure(), v1::DEVICE_FAULT);
  EXPECT_EQ(ExitOfException(kernels::CudaError("Adam", "cudaMalloc", 2, "")).failure(), v1::DEVICE_OOM);
  EXPECT_EQ(ExitOfException(std::runtime_error("what")).failure(), v1::INTERNAL);
}

using HostOomDeathTest = HostOomTest;

TEST_F(HostOomDeathTest, InAnotherThreadItEndsTheProcessByItsCode) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ExitOnHostOom();
        std::thread([] { throw std::bad_alloc(); }).join();
      },
      ::testing::ExitedWithCode(attempt::kExitHostOom), "HOST_OOM");
}

TEST_F(HostOomDeathTest, AnythingElseIsStillACrash) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ExitOnHostOom();
        std::thread([] { throw std::runtime_error("what"); }).join();
      },
      ::testing::KilledBySignal(SIGABRT), "what");
  EXPECT_EXIT(
      {
        ExitOnHostOom();
        std::terminate();
      },
      ::testing::KilledBySignal(SIGABRT), "");
}

// longhaul-train itself, validating: no plan and no threads.
class TrainProcessTest : public HostOomTest {
 protected:
  // Its exit code, of at most `most_bytes` of address space; -1 where it was killed.
  int Validate(const std::string& data, int64_t most_bytes) {
    const attempt::AttemptDir dir(temp_.At("attempt"));
    EXPECT_TRUE(dir.Create().ok());
    EXPECT_TRUE(WriteFileAtomic(dir.DatasetPath(), data).ok());
    v1::AttemptSpec spec;
    spec.set_job_id("job");
    spec.set_attempt(1);
    spec.set_lease_epoch(1);
    spec.set_kind(v1::ATTEMPT_KIND_VALIDATE);
    spec.set_model_path(Model());
    spec.mutable_spec()->mutable_hyperparameters()->set_max_sequence_length(128);
    spec.mutable_spec()->mutable_hyperparameters()->set_batch_size(1);
    spec.mutable_spec()->mutable_hyperparameters()->set_gradient_accumulation_steps(1);
    spec.mutable_spec()->mutable_hyperparameters()->set_epochs(1);
    EXPECT_TRUE(dir.WriteSpec(spec).ok());
    const pid_t pid = ::fork();
    if (pid == 0) {
      const rlimit limit{static_cast<rlim_t>(most_bytes), static_cast<rlim_t>(most_bytes)};
      const int log = ::open(dir.StderrPath().c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
      if (log >= 0 && ::dup2(log, STDERR_FILENO) >= 0 && ::setrlimit(RLIMIT_AS, &limit) == 0) {
        ::execl(LONGHAUL_TRAIN_PATH, LONGHAUL_TRAIN_PATH, dir.path().c_str(), nullptr);
      }
      ::_exit(127);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    exit_.Clear();
    attempt::EventLogReader reader(dir.EventsPath());
    const auto events = reader.ReadNew();
    if (events.ok() && !events->empty() && events->back().has_exit()) exit_ = events->back().exit();
    log_ = ReadFile(dir.StderrPath(), 1 << 20).value_or("");
    EXPECT_TRUE(RemoveTree(dir.path()).ok());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  v1::TrainerExit exit_;
  std::string log_;
};

TEST_F(TrainProcessTest, SaysSoInItsExit) {
  MakeTheModelHuge();
  EXPECT_EQ(Validate("{\"text\": \"a\"}\n", int64_t{64} << 30), attempt::kExitHostOom) << log_;
  EXPECT_EQ(exit_.reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(exit_.failure(), v1::HOST_OOM) << exit_.message();
}

// From what does not even load the program to what is enough, in steps that are small beside what the data takes.
TEST_F(TrainProcessTest, WhereverItsMemoryEndsItSaysSo) {
  std::string data;
  for (int i = 0; i < 100'000; ++i) data += "{\"text\": \"hello world, hello world\"}\n";
  constexpr int64_t kStepBytes = int64_t{8} << 20;
  constexpr int kNotLoaded = 127;
  int shortages = 0;
  int code = kNotLoaded;
  for (int64_t bytes = int64_t{64} << 20; code != attempt::kExitSucceeded; bytes += kStepBytes) {
    ASSERT_LT(bytes, int64_t{4} << 30) << log_;
    code = Validate(data, bytes);
    if (code == attempt::kExitSucceeded || (code == kNotLoaded && shortages == 0)) continue;
    ++shortages;
    ASSERT_EQ(code, attempt::kExitHostOom) << "with " << bytes << " bytes: " << log_;
    ASSERT_EQ(exit_.failure(), v1::HOST_OOM) << "with " << bytes << " bytes: " << log_;
  }
  EXPECT_GE(shortages, 2) << "the data are not what memory was short for";
}

}  // namespace
}  // namespace longhaul::trainer
