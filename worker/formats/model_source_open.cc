// How each container becomes the tensors of a ModelSource.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "model/family.h"
#include "worker/formats/file_error.h"
#include "worker/formats/gguf_model.h"
#include "worker/formats/json_strict.h"
#include "worker/formats/model_source.h"

namespace longhaul::formats {
namespace {

constexpr char kNf4StateSuffix[] = ".quant_state.bitsandbytes__nf4";

std::vector<int64_t> DimsOf(const ExpectedTensor& expected) {
  if (expected.is_vector) return {expected.cols};
  return {expected.rows, expected.cols};
}

absl::Status CheckDims(const std::string& file, const std::string& name, const std::vector<int64_t>& found,
                       const ExpectedTensor& expected) {
  if (found == DimsOf(expected)) return absl::OkStatus();
  return BadFile(file, "tensor \"" + name + "\" is " + ShapeText(found) + "; expected " + ShapeText(DimsOf(expected)));
}

absl::Status CheckFloatType(const std::string& file, const std::string& name, StorageType type) {
  if (IsReadableAsFloat(type)) return absl::OkStatus();
  return Unsupported(file, "tensor \"" + name + "\" is stored as " + StorageTypeName(type));
}

absl::Status CheckQuantization(const std::string& config_json, const std::string& file) {
  LH_ASSIGN_OR_RETURN(const nlohmann::json config, ParseJsonStrict(config_json, file));
  if (!config.is_object() || !config.contains("quantization_config") || config["quantization_config"].is_null()) {
    return absl::OkStatus();
  }
  const nlohmann::json& quantization = config["quantization_config"];
  const bool ok = quantization.is_object() && quantization.contains("quant_method") &&
                  quantization["quant_method"] == "bitsandbytes" && quantization.contains("bnb_4bit_quant_type") &&
                  quantization["bnb_4bit_quant_type"] == "nf4";
  if (ok) return absl::OkStatus();
  return Unsupported(file, "quantization_config is not bitsandbytes NF4");
}

}  // namespace

absl::Status ModelSource::OpenGguf(const std::string& file) {
  LH_ASSIGN_OR_RETURN(GgufFile opened, GgufFile::Open(file));
  gguf_ = std::make_unique<GgufFile>(std::move(opened));
  bytes_ = gguf_->size();
  LH_ASSIGN_OR_RETURN(shape_, ModelShapeFromGguf(*gguf_));
  const FamilyFacts* family = FindFamily(shape_.family);
  for (const ExpectedTensor& expected : ExpectedTensors(shape_)) {
    LH_RETURN_IF_ERROR(AddGgufTensor(expected, family->gguf_permutes_qk));
  }
  return CheckNoOtherGgufTensors();
}

absl::Status ModelSource::AddGgufTensor(const ExpectedTensor& expected, bool permuted) {
  const GgufTensor* found = gguf_->FindTensor(expected.gguf_name);
  if (found == nullptr) {
    return BadFile(gguf_->path(), "lacks tensor \"" + expected.gguf_name + "\" " + ShapeText(DimsOf(expected)));
  }
  const std::vector<int64_t> dims(found->dims.rbegin(), found->dims.rend());
  LH_RETURN_IF_ERROR(CheckDims(gguf_->path(), found->name, dims, expected));
  LH_RETURN_IF_ERROR(CheckFloatType(gguf_->path(), found->name, found->type));
  Location location;
  location.data = gguf_->Data(*found);
  if (permuted && expected.rotary_heads > 0) {
    if (expected.rows / expected.rotary_heads % 2 != 0) return Unsupported(gguf_->path(), "heads of an odd size");
    location.permuted_heads = expected.rotary_heads;
  }
  Add({expected.hf_name, found->name, found->type, expected.rows, expected.cols, found->bytes}, std::move(location));
  return absl::OkStatus();
}

absl::Status ModelSource::CheckNoOtherGgufTensors() const {
  std::set<std::string> known = {"rope_freqs.weight"};
  for (const StoredTensor& tensor : tensors_) known.insert(tensor.source_name);
  for (const GgufTensor& tensor : gguf_->tensors()) {
    // A bias that is read over would give another model without a word.
    if (known.count(tensor.name) == 0) {
      return Unsupported(gguf_->path(),
                         "tensor \"" + Printable(tensor.name) + "\" has no place in a " + shape_.family + " model");
    }
  }
  return absl::OkStatus();
}

absl::Status ModelSource::OpenHuggingFace() {
  const std::string config_path = JoinPath(folder_, "config.json");
  LH_ASSIGN_OR_RETURN(const std::string config, ReadFile(config_path, limits::kMaxJsonFileBytes));
  LH_RETURN_IF_ERROR(CheckQuantization(config, config_path));
  absl::StatusOr<ModelShape> shape = ModelShapeFromConfigJson(config);
  if (!shape.ok()) return Annotate(shape.status(), config_path);
  shape_ = *std::move(shape);
  LH_ASSIGN_OR_RETURN(SafetensorsSet set, SafetensorsSet::OpenFolder(folder_));
  safetensors_ = std::make_unique<SafetensorsSet>(std::move(set));
  for (const std::string& file : safetensors_->files()) {
    if (!file.ends_with(".safetensors")) continue;
    LH_ASSIGN_OR_RETURN(const int64_t size, FileSize(file));
    bytes_ += size;
  }
  for (const ExpectedTensor& expected : ExpectedTensors(shape_)) LH_RETURN_IF_ERROR(AddHuggingFaceTensor(expected));
  return CheckNoOtherHuggingFaceTensors();
}

absl::Status ModelSource::AddHuggingFaceTensor(const ExpectedTensor& expected) {
  const TensorView* found = safetensors_->Find(expected.hf_name);
  if (found == nullptr) {
    return BadFile(folder_, "lacks tensor \"" + expected.hf_name + "\" " + ShapeText(DimsOf(expected)));
  }
  StoredTensor tensor{expected.hf_name, expected.hf_name, found->entry->type,
                      expected.rows,    expected.cols,    found->bytes()};
  Location location;
  location.data = found->data;
  if (safetensors_->Find(expected.hf_name + kNf4StateSuffix) != nullptr) {
    tensor.type = StorageType::kNF4;
    LH_ASSIGN_OR_RETURN(location.nf4, ReadNf4Parts(*found, expected, &tensor.bytes));
  } else {
    LH_RETURN_IF_ERROR(CheckDims(*found->file, expected.hf_name, found->entry->shape, expected));
    LH_RETURN_IF_ERROR(CheckFloatType(*found->file, expected.hf_name, tensor.type));
  }
  Add(std::move(tensor), std::move(location));
  return absl::OkStatus();
}

absl::StatusOr<ModelSource::Nf4Parts> ModelSource::ReadNf4Parts(const TensorView& packed,
                                                                const ExpectedTensor& expected,
                                                                int64_t* total_bytes) const {
  const std::string& name = expected.hf_name;
  // A companion tensor by suffix, with its dtype and element count checked.
  const auto companion = [&](const std::string& suffix, StorageType type,
                             int64_t count) -> absl::StatusOr<const TensorView*> {
    const TensorView* view = safetensors_->Find(name + suffix);
    if (view == nullptr)
      return BadFile(*packed.file, "\"" + name + "\" is NF4 but \"" + name + suffix + "\" is missing");
    if (view->entry->type != type || (count >= 0 && view->bytes() != StorageBytes(type, count))) {
      return BadFile(*view->file, "tensor \"" + name + suffix + "\" is " + StorageTypeName(view->entry->type) + " of " +
                                      std::to_string(view->bytes()) + " bytes; expected " + StorageTypeName(type) +
                                      (count >= 0 ? " [" + std::to_string(count) + "]" : ""));
    }
    *total_bytes += view->bytes();
    return view;
  };
  LH_ASSIGN_OR_RETURN(const TensorView* json, companion(kNf4StateSuffix, StorageType::kU8, -1));
  Nf4Parts parts;
  LH_ASSIGN_OR_RETURN(parts.state, Nf4QuantStateFromJson(
                                       {reinterpret_cast<const char*>(json->data), static_cast<size_t>(json->bytes())},
                                       *json->file + ": " + name + kNf4StateSuffix));
  LH_RETURN_IF_ERROR(CheckDims(*json->file, name, parts.state.shape, expected));
  const int64_t elements = parts.state.elements();
  // By bytes, not dtype: bnb_4bit_quant_storage may reinterpret the packed bytes.
  if (packed.bytes() != Nf4PackedBytes(elements)) {
    return BadFile(*packed.file, "tensor \"" + name + "\" has " + std::to_string(packed.bytes()) +
                                     " bytes; NF4 of its shape has " + std::to_string(Nf4PackedBytes(elements)));
  }
  LH_ASSIGN_OR_RETURN(const TensorView* codes, companion(".quant_map", StorageType::kF32, 16));
  if (std::memcmp(codes->data, kNf4Codes.data(), sizeof kNf4Codes) != 0) {
    return Unsupported(*codes->file, "\"" + name + ".quant_map\" holds other codes than NF4's");
  }
  const int64_t blocks = Nf4Blocks(elements, parts.state.block_size);
  const StorageType absmax_type = parts.state.nested ? StorageType::kU8 : StorageType::kF32;
  LH_ASSIGN_OR_RETURN(const TensorView* absmax, companion(".absmax", absmax_type, blocks));
  parts.absmax = absmax->data;
  if (!parts.state.nested) return parts;
  const int64_t nested_blocks = Nf4Blocks(blocks, parts.state.nested_block_size);
  LH_ASSIGN_OR_RETURN(const TensorView* nested, companion(".nested_absmax", StorageType::kF32, nested_blocks));
  LH_ASSIGN_OR_RETURN(const TensorView* map, companion(".nested_quant_map", StorageType::kF32, 256));
  parts.nested_absmax.resize(static_cast<size_t>(nested_blocks));
  std::memcpy(parts.nested_absmax.data(), nested->data, static_cast<size_t>(nested->bytes()));
  for (size_t i = 0; i < parts.nested_absmax.size(); ++i) {
    if (std::isfinite(parts.nested_absmax[i])) continue;
    return BadFile(*nested->file, "\"" + name + ".nested_absmax\" is not finite at " + std::to_string(i));
  }
  parts.nested_map.resize(256);
  std::memcpy(parts.nested_map.data(), map->data, static_cast<size_t>(map->bytes()));
  return parts;
}

absl::Status ModelSource::CheckNoOtherHuggingFaceTensors() const {
  std::set<std::string> known;
  if (shape_.tied_embeddings) known.insert(kHeadName);  // a copy that Hugging Face ignores too
  for (size_t i = 0; i < tensors_.size(); ++i) {
    known.insert(tensors_[i].hf_name);
    if (!locations_[i].nf4) continue;
    for (const char* suffix : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", kNf4StateSuffix}) {
      known.insert(tensors_[i].hf_name + suffix);
    }
  }
  for (const auto& [name, view] : safetensors_->tensors()) {
    // Old checkpoints store RoPE's frequencies, which follow from the config.
    if (known.count(name) != 0 || name.ends_with(".rotary_emb.inv_freq")) continue;
    return Unsupported(*view.file, "tensor \"" + Printable(name) + "\" has no place in a " + shape_.family + " model");
  }
  return absl::OkStatus();
}

}  // namespace longhaul::formats
