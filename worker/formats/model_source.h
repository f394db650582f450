// A base model as it lies on disk, whatever its container: every tensor under its Hugging Face name, its rows in
// Hugging Face order, as floats or as stored. Source: FORMATS.md sections 2, 4 and 8. Tests:
// tests/worker/formats/model_source_test.cc
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/model_shape.h"
#include "worker/formats/bnb_nf4.h"
#include "worker/formats/gguf.h"
#include "worker/formats/safetensors.h"
#include "worker/formats/tensor_names.h"

namespace longhaul::formats {

// One tensor, as stored. A norm is one row.
struct StoredTensor {
  std::string hf_name;
  std::string source_name;  // in the file
  StorageType type = StorageType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t bytes = 0;  // of the tensor itself; for kNF4 with its scales
};

// Opens a .gguf file, a folder with exactly one .gguf, or a Hugging Face folder (config.json and safetensors, one file
// or shards, bitsandbytes NF4 among them). Open checks that every tensor the shape asks for is there with its dims and
// that no other tensor would change the result. Movable. Thread-safe: immutable; ReadRows from any thread.
class ModelSource {
 public:
  // INVALID_ARGUMENT names file, tensor, found and expected; UNIMPLEMENTED (MODEL_UNSUPPORTED) names what Longhaul
  // lacks; NOT_FOUND the missing path.
  static absl::StatusOr<ModelSource> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const ModelShape& shape() const { return shape_; }
  // Bytes of the weight files.
  int64_t bytes() const { return bytes_; }
  // SHA-256 of the content: of the .gguf file, or of the sorted lines "name\0sha256\n" of the folder's config,
  // tokenizer and weight files. Reads every byte at each call: keep the result. CANCELLED once `cancelled` says so.
  absl::StatusOr<std::string> ComputeDigest(const std::function<bool()>& cancelled = nullptr) const;
  // SHA-256 over path, size, modification time and inode of the files that ComputeDigest reads, as they are on disk
  // now: while it stays the same, so does the digest. Reads no content.
  absl::StatusOr<std::string> Fingerprint() const { return FingerprintOf(DigestFiles()); }
  static absl::StatusOr<std::string> FingerprintOf(std::vector<std::string> files);
  // The files that ComputeDigest reads.
  std::vector<std::string> DigestFiles() const;

  // The GGUF file, or null for a Hugging Face folder.
  const GgufFile* gguf() const { return gguf_.get(); }
  // The Hugging Face folder, or "" for a GGUF.
  const std::string& folder() const { return folder_; }

  // In the order of ExpectedTensors(shape()).
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  // By Hugging Face name. Where the head is tied, "lm_head.weight" finds the embedding. Null where there is none.
  const StoredTensor* Find(const std::string& hf_name) const;

  // out[r - row_begin, :] = row r in f32, for r in [row_begin, row_end). out: [row_end - row_begin, cols].
  // kNF4 rows are rounded to the checkpoint's dtype, as bitsandbytes does. Allocates nothing.
  // NOT_FOUND for an unknown name, OUT_OF_RANGE for rows that the tensor lacks.
  absl::Status ReadRows(const std::string& hf_name, int64_t row_begin, int64_t row_end, float* out) const;

  // Null where the tensor is unknown or not kNF4.
  std::optional<Nf4View> FindNf4(const std::string& hf_name) const;

  // Copies the rows as stored, without conversion: (row_end - row_begin) * bytes of a row.
  // FAILED_PRECONDITION for kNF4, whose blocks cross rows; the other errors as for ReadRows.
  absl::Status ReadStoredRows(const std::string& hf_name, int64_t row_begin, int64_t row_end, void* out) const;

 private:
  // Where the rows of tensors_[i] lie and how to turn them into floats.
  struct Nf4Parts {
    Nf4QuantState state;
    const uint8_t* absmax = nullptr;  // u8 codes where nested, else f32
    // Copies: nothing promises that floats in the file are aligned.
    std::vector<float> nested_absmax;
    std::vector<float> nested_map;
  };
  struct Location {
    const uint8_t* data = nullptr;
    int64_t permuted_heads = 0;  // GGUF's row order for family llama; 0 = rows as in Hugging Face
    std::optional<Nf4Parts> nf4;
  };

  absl::Status OpenGguf(const std::string& file);
  absl::Status OpenHuggingFace();
  absl::Status AddGgufTensor(const ExpectedTensor& expected, bool permuted);
  absl::Status AddHuggingFaceTensor(const ExpectedTensor& expected);
  absl::StatusOr<Nf4Parts> ReadNf4Parts(const TensorView& packed, const ExpectedTensor& expected,
                                        int64_t* total_bytes) const;
  absl::Status CheckNoOtherGgufTensors() const;
  absl::Status CheckNoOtherHuggingFaceTensors() const;
  void Add(StoredTensor tensor, Location location);
  absl::StatusOr<size_t> FindRows(const std::string& hf_name, int64_t row_begin, int64_t row_end) const;
  // Elements [begin, end) of the flattened matrix, rounded to the checkpoint's dtype.
  static void ReadNf4Elements(const Location& location, int64_t begin, int64_t end, float* out);
  // The row of the file that holds row `row`.
  int64_t SourceRow(size_t index, int64_t row) const;

  std::string path_;
  std::string folder_;
  ModelShape shape_;
  int64_t bytes_ = 0;
  std::unique_ptr<GgufFile> gguf_;
  std::unique_ptr<SafetensorsSet> safetensors_;
  std::vector<StoredTensor> tensors_;
  std::vector<Location> locations_;
  std::map<std::string, size_t> index_;
};

}  // namespace longhaul::formats
