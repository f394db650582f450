#include "worker/formats/model_source.h"

#include <algorithm>
#include <cstring>

#include "base/env.h"
#include "base/error.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/status_macros.h"
#include "worker/formats/dequant.h"
#include "worker/formats/file_error.h"

namespace longhaul::formats {
namespace {

// What beside the weights makes two models different to a user.
constexpr const char* kDigestFiles[] = {
    "added_tokens.json",       "chat_template.jinja", "config.json",     "generation_config.json", "merges.txt",
    "special_tokens_map.json", "tokenizer.json",      "tokenizer.model", "tokenizer_config.json",  "vocab.json"};

absl::StatusOr<std::string> FindGguf(const std::string& folder) {
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(folder));
  std::vector<std::string> found;
  for (const std::string& name : names) {
    if (name.ends_with(".gguf")) found.push_back(name);
  }
  if (found.empty()) return BadFile(folder, "holds neither config.json nor a .gguf file");
  if (found.size() > 1) {
    return BadFile(folder, "holds " + std::to_string(found.size()) + " .gguf files (" + Printable(found[0]) + ", " +
                               Printable(found[1]) + (found.size() > 2 ? ", ..." : "") + "); name the one to use");
  }
  return JoinPath(folder, found[0]);
}

void RoundToDtype(StorageType dtype, int64_t n, float* values) {
  if (dtype == StorageType::kBF16) {
    for (int64_t i = 0; i < n; ++i) values[i] = Bf16ToFloat(FloatToBf16(values[i]));
  } else if (dtype == StorageType::kF16) {
    for (int64_t i = 0; i < n; ++i) values[i] = F16ToFloat(FloatToF16(values[i]));
  }
}

}  // namespace

absl::StatusOr<ModelSource> ModelSource::Open(const std::string& path) {
  ModelSource source;
  source.path_ = path;
  if (!IsDirectory(path)) {
    LH_RETURN_IF_ERROR(source.OpenGguf(path));
  } else if (FileExists(JoinPath(path, "config.json"))) {
    source.folder_ = path;
    LH_RETURN_IF_ERROR(source.OpenHuggingFace());
  } else {
    LH_ASSIGN_OR_RETURN(const std::string file, FindGguf(path));
    LH_RETURN_IF_ERROR(source.OpenGguf(file));
  }
  if (source.shape_.tied_embeddings) source.index_[kHeadName] = source.index_.at(kEmbeddingName);
  return source;
}

void ModelSource::Add(StoredTensor tensor, Location location) {
  index_[tensor.hf_name] = tensors_.size();
  tensors_.push_back(std::move(tensor));
  locations_.push_back(std::move(location));
}

const StoredTensor* ModelSource::Find(const std::string& hf_name) const {
  const auto it = index_.find(hf_name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

std::vector<std::string> ModelSource::DigestFiles() const {
  if (gguf_ != nullptr) return {gguf_->path()};
  std::vector<std::string> files = safetensors_->files();
  for (const char* name : kDigestFiles) {
    const std::string file = JoinPath(folder_, name);
    if (FileExists(file)) files.push_back(file);
  }
  return files;
}

absl::StatusOr<std::string> ModelSource::FingerprintOf(std::vector<std::string> files) {
  std::sort(files.begin(), files.end());
  std::string lines;
  for (const std::string& file : files) {
    LH_ASSIGN_OR_RETURN(const std::string stamp, FileStamp(file));
    lines += file + '\0' + stamp + '\n';
  }
  return Sha256Hex(lines);
}

absl::StatusOr<std::string> ModelSource::ComputeDigest(const std::function<bool()>& cancelled) const {
  if (gguf_ != nullptr) return Sha256HexOfFile(gguf_->path(), cancelled);
  std::map<std::string, std::string> digests;
  for (const std::string& file : DigestFiles()) {
    LH_ASSIGN_OR_RETURN(digests[file.substr(file.rfind('/') + 1)], Sha256HexOfFile(file, cancelled));
  }
  std::string lines;
  for (const auto& [name, digest] : digests) lines += name + '\0' + digest + '\n';
  return Sha256Hex(lines);
}

absl::StatusOr<size_t> ModelSource::FindRows(const std::string& hf_name, int64_t row_begin, int64_t row_end) const {
  const auto it = index_.find(hf_name);
  if (it == index_.end()) {
    return MakeError(absl::StatusCode::kNotFound, "TENSOR_UNKNOWN", path_ + ": has no tensor \"" + hf_name + "\"");
  }
  const int64_t rows = tensors_[it->second].rows;
  if (row_begin < 0 || row_begin > row_end || row_end > rows) {
    return MakeError(absl::StatusCode::kOutOfRange, "ROWS_OUT_OF_RANGE",
                     path_ + ": rows " + std::to_string(row_begin) + " to " + std::to_string(row_end) + " of \"" +
                         hf_name + "\", which has " + std::to_string(rows));
  }
  return it->second;
}

int64_t ModelSource::SourceRow(size_t index, int64_t row) const {
  const int64_t heads = locations_[index].permuted_heads;
  if (heads == 0) return row;
  // Hugging Face keeps a head's rows as [2, head_dim / 2], GGUF as [head_dim / 2, 2].
  const int64_t head_dim = tensors_[index].rows / heads;
  const int64_t half = head_dim / 2;
  const int64_t within = row % head_dim;
  return row - within + (within % half) * 2 + within / half;
}

void ModelSource::ReadNf4Elements(const Location& location, int64_t begin, int64_t end, float* out) {
  const Nf4Parts& parts = *location.nf4;
  const int64_t block = parts.state.block_size;
  // The scales of a few blocks at a time, on the stack.
  constexpr int64_t kBlocksAtOnce = 256;
  float scales[kBlocksAtOnce];
  while (begin < end) {
    const int64_t first_block = begin / block;
    const int64_t stop = std::min(end, (first_block + kBlocksAtOnce) * block);
    const int64_t last_block = Nf4Blocks(stop, block);
    if (parts.state.nested) {
      DequantizeAbsmax(parts.absmax, parts.nested_map.data(), parts.nested_absmax.data(), parts.state.nested_offset,
                       first_block, last_block, parts.state.nested_block_size, scales);
    } else {
      std::memcpy(scales, parts.absmax + static_cast<size_t>(first_block) * sizeof(float),
                  static_cast<size_t>(last_block - first_block) * sizeof(float));
    }
    const int64_t base = first_block * block;  // even: block sizes are
    DequantizeNf4(location.data + base / 2, scales, begin - base, stop - base, block, out);
    RoundToDtype(parts.state.dtype, stop - begin, out);
    out += stop - begin;
    begin = stop;
  }
}

absl::Status ModelSource::ReadRows(const std::string& hf_name, int64_t row_begin, int64_t row_end, float* out) const {
  LH_ASSIGN_OR_RETURN(const size_t index, FindRows(hf_name, row_begin, row_end));
  const StoredTensor& tensor = tensors_[index];
  const Location& location = locations_[index];
  if (location.nf4) {
    ReadNf4Elements(location, row_begin * tensor.cols, row_end * tensor.cols, out);
    return absl::OkStatus();
  }
  const int64_t row_bytes = StorageBytes(tensor.type, tensor.cols);
  if (location.permuted_heads == 0) {
    DequantizeRows(tensor.type, location.data + row_begin * row_bytes, row_end - row_begin, tensor.cols, out);
    return absl::OkStatus();
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    DequantizeRows(tensor.type, location.data + SourceRow(index, row) * row_bytes, 1, tensor.cols,
                   out + (row - row_begin) * tensor.cols);
  }
  return absl::OkStatus();
}

std::optional<Nf4View> ModelSource::FindNf4(const std::string& hf_name) const {
  const auto it = index_.find(hf_name);
  if (it == index_.end() || !locations_[it->second].nf4) return std::nullopt;
  const Location& location = locations_[it->second];
  const Nf4Parts& parts = *location.nf4;
  return Nf4View{&parts.state, location.data, parts.absmax, parts.nested_absmax.data(), parts.nested_map.data()};
}

absl::Status ModelSource::ReadStoredRows(const std::string& hf_name, int64_t row_begin, int64_t row_end,
                                         void* out) const {
  LH_ASSIGN_OR_RETURN(const size_t index, FindRows(hf_name, row_begin, row_end));
  const StoredTensor& tensor = tensors_[index];
  if (tensor.type == StorageType::kNF4) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NF4_HAS_NO_ROWS",
                     path_ + ": \"" + hf_name + "\" is NF4, whose blocks cross rows");
  }
  const int64_t row_bytes = StorageBytes(tensor.type, tensor.cols);
  auto* bytes = static_cast<uint8_t*>(out);
  for (int64_t row = row_begin; row < row_end; ++row) {
    std::memcpy(bytes, locations_[index].data + SourceRow(index, row) * row_bytes, static_cast<size_t>(row_bytes));
    bytes += row_bytes;
  }
  return absl::OkStatus();
}

}  // namespace longhaul::formats
