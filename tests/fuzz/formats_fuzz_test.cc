// Damaged files: 2,000 mutations a format from a fixed seed. None may crash (run under AddressSanitizer too) or
// allocate more than 64 MiB beyond the file's size; whatever is accepted must be readable to its last byte.
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "gtest/gtest.h"
#include "tests/fuzz/allocation_meter.h"
#include "tests/fuzz/fuzz_seed.h"
#include "tests/worker/formats/test_support.h"
#include "worker/formats/bnb_nf4.h"
#include "worker/formats/gguf.h"
#include "worker/formats/gguf_model.h"
#include "worker/formats/model_source.h"
#include "worker/formats/peft_adapter.h"

namespace longhaul::formats {
namespace {

constexpr int kMutations = 2000;
constexpr int64_t kMaxExtraBytes = 64 << 20;

class Mutator {
 public:
  // `head_bytes`: where most damage goes; the rest of the file is data.
  Mutator(std::string seed, size_t head_bytes) : seed_(std::move(seed)), head_bytes_(head_bytes), random_(FuzzSeed()) {}

  std::string Next() {
    std::string bytes = seed_;
    const size_t changes = 1 + Draw(3);
    for (size_t i = 0; i < changes; ++i) Change(&bytes);
    return bytes;
  }

 private:
  size_t Draw(size_t n) { return n == 0 ? 0 : random_() % n; }

  void Change(std::string* bytes) {
    const size_t at = Draw(std::min(head_bytes_, bytes->size()));
    switch (Draw(8)) {
      case 0:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << Draw(8)));
        break;
      case 1:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>(Draw(256));
        break;
      case 2:
        bytes->resize(Draw(bytes->size() + 1));
        break;
      case 3:
        bytes->erase(at, 1 + Draw(16));
        break;
      case 4:
        bytes->insert(at, bytes->substr(Draw(bytes->size() + 1), 1 + Draw(64)));
        break;
      case 5: {  // a count, length or offset turned into an extreme one
        static constexpr uint64_t kExtremes[] = {0, 1, 0x7fffffff, 0xffffffff, 1ull << 40, INT64_MAX, UINT64_MAX};
        const uint64_t value = kExtremes[Draw(std::size(kExtremes))];
        const size_t width = Draw(2) == 0 ? 4 : 8;
        if (at + width <= bytes->size()) std::memcpy(bytes->data() + at, &value, width);
        break;
      }
      case 6: {  // JSON punctuation
        static constexpr char kTokens[] = "{}[],:\"0-9e.\\";
        bytes->insert(at, 1, kTokens[Draw(sizeof kTokens - 1)]);
        break;
      }
      default:
        if (at < bytes->size()) bytes->insert(at, 1 + Draw(4), (*bytes)[at]);
        break;
    }
  }

  const std::string seed_;
  const size_t head_bytes_;
  std::mt19937 random_;
};

// Not durable: thousands of syncs would be the test's whole time.
void Overwrite(const std::string& path, const std::string& bytes) {
  LH_CHECK(RemoveFile(path).ok(), path);  // cutting a file and writing it again makes some file systems sync too
  absl::StatusOr<AppendFile> file = AppendFile::Open(path);
  LH_CHECK(file.ok() && file->Append(bytes).ok(), path);
}

struct Tally {
  int accepted = 0;
  int refused = 0;
};

// Runs `read` on every mutation and checks its error's form and its memory.
Tally Replay(const std::string& seed, size_t head_bytes,
             const std::function<absl::Status(const std::string& bytes)>& read) {
  Mutator mutator(seed, head_bytes);
  Tally tally;
  for (int i = 0; i < kMutations; ++i) {
    const std::string bytes = mutator.Next();
    ResetAllocationPeak();
    const int64_t before = AllocatedBytes();
    const absl::Status status = read(bytes);
    const int64_t extra = AllocatedBytesPeak() - before;
    EXPECT_LE(extra, static_cast<int64_t>(bytes.size()) + kMaxExtraBytes) << "mutation " << i;
    if (status.ok()) {
      ++tally.accepted;
      continue;
    }
    ++tally.refused;
    EXPECT_FALSE(status.message().empty()) << "mutation " << i;
    EXPECT_FALSE(ErrorReason(status).empty()) << "mutation " << i << ": " << status;
  }
  // Damage that never hurts, or always, would test nothing.
  EXPECT_GT(tally.refused, kMutations / 4);
  return tally;
}

double SumOf(StorageType type, const uint8_t* data, int64_t rows, int64_t cols) {
  std::vector<float> row(static_cast<size_t>(cols));
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRows(type, data + r * StorageBytes(type, cols), 1, cols, row.data());
    for (float x : row) sum += static_cast<double>(x);
  }
  return sum;
}

absl::Status ReadWholeGguf(const std::string& bytes) {
  const auto file = GgufFile::FromBytes(bytes, "fuzz.gguf");
  if (!file.ok()) return file.status();
  volatile double sink = 0;
  for (const GgufTensor& tensor : file->tensors()) {
    if (IsReadableAsFloat(tensor.type)) sink = SumOf(tensor.type, file->Data(tensor), tensor.rows(), tensor.cols());
  }
  for (const auto& [key, value] : file->metadata()) {
    for (std::string_view text : value.strings()) sink = sink + static_cast<double>(text.size());
    if (const auto ints = value.AsIntArray()) sink = sink + static_cast<double>(ints->size());
    if (const auto floats = value.AsFloatArray()) sink = sink + static_cast<double>(floats->size());
    if (const auto number = value.AsFloat()) sink = sink + *number;
  }
  return ModelShapeFromGguf(*file).status();
}

TEST(FormatsFuzzTest, GgufModel) {
  const std::string seed = ReadAll(Golden("formats_tiny.gguf"));
  const Tally tally = Replay(seed, 4096, ReadWholeGguf);
  EXPECT_GT(tally.accepted, 10);
}

TEST(FormatsFuzzTest, GgufMetadata) {
  const std::string seed = ReadAll(Golden("formats_metadata.gguf"));
  Replay(seed, seed.size(), ReadWholeGguf);
}

TEST(FormatsFuzzTest, GgufModelOnDisk) {
  TempDir dir;
  const std::string seed = ReadAll(Golden("formats_tiny.gguf"));
  Replay(seed, 4096, [&dir](const std::string& bytes) {
    Overwrite(dir.File("m.gguf"), bytes);
    const auto source = ModelSource::Open(dir.path());
    if (!source.ok()) return source.status();
    for (const StoredTensor& tensor : source->tensors()) {
      std::vector<float> row(static_cast<size_t>(tensor.cols));
      for (int64_t r = 0; r < tensor.rows; ++r) {
        const absl::Status status = source->ReadRows(tensor.hf_name, r, r + 1, row.data());
        if (!status.ok()) return status;
      }
    }
    return absl::OkStatus();
  });
}

absl::Status ReadWholeSafetensors(const std::string& bytes) {
  const auto header = ParseSafetensors(bytes, "fuzz.safetensors");
  if (!header.ok()) return header.status();
  volatile double sink = 0;
  for (const SafetensorsEntry& entry : header->tensors) {
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data()) + entry.begin;
    for (int64_t i = 0; i < entry.end - entry.begin; ++i) sink = sink + data[i];
  }
  return absl::OkStatus();
}

TEST(FormatsFuzzTest, SafetensorsSmall) {
  const std::string seed = ReadAll(Golden("formats_writer.safetensors"));
  const Tally tally = Replay(seed, seed.size(), ReadWholeSafetensors);
  EXPECT_GT(tally.accepted, 10);
}

TEST(FormatsFuzzTest, SafetensorsShard) {
  Replay(ReadAll(Golden("formats_hf_00001.safetensors")), 2048, ReadWholeSafetensors);
}

TEST(FormatsFuzzTest, AdapterConfig) {
  AdapterConfig config;
  config.base_model_name_or_path = "acme/tiny";
  config.r = 16;
  config.lora_alpha = 32;
  config.target_modules = {"q_proj", "v_proj"};
  const std::string seed = AdapterConfigToJson(config);
  const Tally tally = Replay(seed, seed.size(), [](const std::string& bytes) {
    return AdapterConfigFromJson(bytes, "adapter_config.json").status();
  });
  EXPECT_GT(tally.accepted, 10);
}

TEST(FormatsFuzzTest, AdapterWeights) {
  ModelShape shape;
  shape.layers = 1;
  shape.hidden = 8;
  shape.intermediate = 8;
  shape.heads = shape.kv_heads = 1;
  shape.head_dim = 8;
  AdapterConfig config;
  config.r = 2;
  config.lora_alpha = 4;
  config.target_modules = {"q_proj"};
  const std::vector<float> values(16, 0.5f);
  TempDir dir;
  ASSERT_TRUE(
      WriteAdapter(dir.path(), config,
                   {{LoraAKey(0, "q_proj"), {2, 8}, values.data()}, {LoraBKey(0, "q_proj"), {8, 2}, values.data()}},
                   {"t", "b", {}, {}})
          .ok());
  const std::string path = dir.File("adapter_model.safetensors");
  const std::string seed = ReadAll(path);
  const Tally tally = Replay(seed, seed.size(), [&](const std::string& bytes) {
    Overwrite(path, bytes);
    return ReadAdapter(dir.path(), shape).status();
  });
  EXPECT_GT(tally.accepted, 10);
}

TEST(FormatsFuzzTest, Nf4QuantState) {
  Nf4QuantState state;
  state.shape = {64, 64};
  state.nested = true;
  state.nested_offset = 0.25f;
  const std::string seed = Nf4QuantStateToJson(state);
  Replay(seed, seed.size(), [](const std::string& bytes) { return Nf4QuantStateFromJson(bytes, "state").status(); });
}

}  // namespace
}  // namespace longhaul::formats
