// What the tests of the file formats share: golden files, a folder that goes away, and files built byte by byte.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/env.h"
#include "worker/formats/dequant.h"
#include "worker/formats/safetensors.h"

namespace longhaul::formats {

inline std::string Golden(const std::string& name) { return LONGHAUL_SOURCE_DIR "/tests/golden/" + name; }

class TempDir {
 public:
  TempDir() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base == nullptr ? "/tmp" : base) + "/longhaul-formats-XXXXXX";
    LH_CHECK(::mkdtemp(path_.data()) != nullptr, path_);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { LH_CHECK(RemoveTree(path_).ok(), path_); }
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

inline std::string ReadAll(const std::string& path) {
  absl::StatusOr<std::string> bytes = ReadFile(path, 1 << 30);
  LH_CHECK(bytes.ok(), bytes.status().ToString());
  return *std::move(bytes);
}

inline void WriteAll(const std::string& path, std::string_view bytes) {
  LH_CHECK(WriteFileAtomic(path, bytes).ok(), path);
}

template <typename T>
std::string Le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// Bits, so that -0 and 0 differ and NaN equals itself.
inline std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  if (!values.empty()) std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

// A float tensor of a set, as f32.
inline std::vector<float> Floats(const SafetensorsSet& set, const std::string& name) {
  const TensorView* view = set.Find(name);
  LH_CHECK(view != nullptr, name);
  const int64_t n = view->bytes() / BlockBytes(view->entry->type);
  std::vector<float> out(static_cast<size_t>(n));
  DequantizeRows(view->entry->type, view->data, 1, n, out.data());
  return out;
}

inline std::vector<uint8_t> BytesOf(const SafetensorsSet& set, const std::string& name) {
  const TensorView* view = set.Find(name);
  LH_CHECK(view != nullptr, name);
  return {view->data, view->data + view->bytes()};
}

}  // namespace longhaul::formats
