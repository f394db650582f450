// A folder for one test, removed with what is in it.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <string>

#include "base/check.h"
#include "base/env.h"

namespace longhaul {

class TempDir {
 public:
  TempDir() : path_(::testing::TempDir() + "/longhaul-XXXXXX") { LH_CHECK(::mkdtemp(path_.data()) != nullptr); }
  ~TempDir() { (void)RemoveTree(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string At(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace longhaul
