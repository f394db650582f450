// One CLI run in process against a FakeScheduler: arguments in, exit code and the two streams out.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "clients/cli/cli.h"
#include "clients/cli/rpc_error.h"
#include "tests/clients/cli/fake_scheduler.h"

namespace longhaul::cli {

class CliTest : public ::testing::Test {
 protected:
  CliTest() {
    dir_ = std::filesystem::temp_directory_path() / ("longhaul_cli_" + std::to_string(getpid()) + "_" +
                                                     ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(dir_);
    env_.out = &out_;
    env_.err = &err_;
    env_.clock = &clock_;
    env_.stop = &stop_;
    env_.default_channel.address = scheduler_.address();
    env_.exec = [this](const std::string& path, const std::vector<std::string>& argv) {
      exec_path_ = path;
      exec_argv_ = argv;
    };
  }
  ~CliTest() override { std::filesystem::remove_all(dir_); }

  int Run(const std::vector<std::string>& arguments) {
    out_.str("");
    err_.str("");
    return RunCli(arguments, env_);
  }

  std::string Write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = dir_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }

  static std::string ReadAll(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  v1::Job& AddJob(const std::string& id, v1::JobState state) {
    scheduler_.jobs.jobs.emplace_back();
    v1::Job& job = scheduler_.jobs.jobs.back();
    job.set_id(id);
    job.set_state(state);
    return job;
  }

  std::filesystem::path dir_;
  FakeScheduler scheduler_;
  RealClock clock_;
  StopSignal stop_;
  std::ostringstream out_;
  std::ostringstream err_;
  CliEnv env_;
  std::string exec_path_;
  std::vector<std::string> exec_argv_;
};

}  // namespace longhaul::cli
