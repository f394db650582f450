// Reads the bytes of a GGUF file from front to back; every step is bounded by what is left of the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/formats/gguf.h"

namespace longhaul::formats {

// One use: construct, Parse. `bytes` outlives the result.
class GgufParser {
 public:
  GgufParser(std::string_view bytes, std::string name) : bytes_(bytes) { file_.path_ = std::move(name); }
  absl::StatusOr<GgufFile> Parse();

 private:
  absl::Status Fail(size_t offset, const std::string& what) const;
  absl::Status ReadBytes(size_t count, const char* what, std::string_view* out);
  template <typename T>
  absl::Status ReadNumber(const char* what, T* out);
  absl::Status ReadCount(const char* what, int64_t limit, int64_t min_bytes_each, int64_t* out);
  absl::Status ReadString(const char* what, std::string_view* out);
  absl::Status ReadArray(GgufValue* out);
  absl::Status ReadValue(GgufValue* out);
  absl::Status ReadMetadata(int64_t count);
  absl::Status ReadTensorInfo(GgufTensor* out);
  absl::Status ReadTensors(int64_t count);

  const std::string_view bytes_;
  size_t at_ = 0;
  GgufFile file_;
};

}  // namespace longhaul::formats
