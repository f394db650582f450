// A folder of its own for one test, gone with it.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "base/check.h"
#include "base/env.h"

namespace longhaul {

class TempDir {
 public:
  explicit TempDir(const char* base = nullptr) {
    if (base == nullptr) base = std::getenv("TMPDIR");
    std::string name = JoinPath(base == nullptr ? "/tmp" : base, "longhaul-storage-XXXXXX");
    LH_CHECK(::mkdtemp(name.data()) != nullptr, name);
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { RemoveTree(path_).IgnoreError(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace longhaul
