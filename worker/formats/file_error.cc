#include "worker/formats/file_error.h"

#include "base/error.h"

namespace longhaul::formats {

absl::Status BadFile(const std::string& file, const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "FILE_INVALID", file + ": " + what);
}

absl::Status Unsupported(const std::string& file, const std::string& what) {
  return MakeError(absl::StatusCode::kUnimplemented, "MODEL_UNSUPPORTED", file + ": " + what);
}

std::string Printable(std::string_view text, size_t max_bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned char c : text.substr(0, max_bytes)) {
    if (c >= 0x20 && c < 0x7f) {
      out += static_cast<char>(c);
    } else {
      out += "\\x";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    }
  }
  if (text.size() > max_bytes) out += "...";
  return out;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

}  // namespace longhaul::formats
