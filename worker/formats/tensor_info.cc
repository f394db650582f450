#include "worker/formats/tensor_info.h"

#include "base/check.h"

namespace longhaul::formats {
namespace {

struct TypeFact {
  StorageType type;
  const char* name;
  int64_t block_elements;
  int64_t block_bytes;
};

// In the order of the enum; the safetensors types first, in that format's dtype rank.
constexpr TypeFact kFacts[] = {
    {StorageType::kBool, "BOOL", 1, 1},
    {StorageType::kF4, "F4", 2, 1},
    {StorageType::kF6E2M3, "F6_E2M3", 4, 3},
    {StorageType::kF6E3M2, "F6_E3M2", 4, 3},
    {StorageType::kU8, "U8", 1, 1},
    {StorageType::kI8, "I8", 1, 1},
    {StorageType::kF8E5M2, "F8_E5M2", 1, 1},
    {StorageType::kF8E4M3, "F8_E4M3", 1, 1},
    {StorageType::kF8E8M0, "F8_E8M0", 1, 1},
    {StorageType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 1, 1},
    {StorageType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 1, 1},
    {StorageType::kI16, "I16", 1, 2},
    {StorageType::kU16, "U16", 1, 2},
    {StorageType::kF16, "F16", 1, 2},
    {StorageType::kBF16, "BF16", 1, 2},
    {StorageType::kI32, "I32", 1, 4},
    {StorageType::kU32, "U32", 1, 4},
    {StorageType::kF32, "F32", 1, 4},
    {StorageType::kC64, "C64", 1, 8},
    {StorageType::kF64, "F64", 1, 8},
    {StorageType::kI64, "I64", 1, 8},
    {StorageType::kU64, "U64", 1, 8},
    {StorageType::kQ4_0, "Q4_0", 32, 18},
    {StorageType::kQ4_1, "Q4_1", 32, 20},
    {StorageType::kQ8_0, "Q8_0", 32, 34},
    {StorageType::kQ4_K, "Q4_K", 256, 144},
    {StorageType::kQ6_K, "Q6_K", 256, 210},
    {StorageType::kNF4, "NF4", 2, 1},
};

const TypeFact& FactOf(StorageType type) {
  const auto index = static_cast<size_t>(type);
  LH_CHECK(index < sizeof kFacts / sizeof kFacts[0]);
  LH_CHECK(kFacts[index].type == type, kFacts[index].name);
  return kFacts[index];
}

}  // namespace

const char* StorageTypeName(StorageType type) { return FactOf(type).name; }
int64_t BlockElements(StorageType type) { return FactOf(type).block_elements; }
int64_t BlockBytes(StorageType type) { return FactOf(type).block_bytes; }

int64_t MultiplyOrMinusOne(int64_t a, int64_t b) {
  int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) return -1;
  return product;
}

int64_t StorageBytes(StorageType type, int64_t elements) {
  const TypeFact& fact = FactOf(type);
  if (elements < 0 || elements % fact.block_elements != 0) return -1;
  return MultiplyOrMinusOne(elements / fact.block_elements, fact.block_bytes);
}

bool IsReadableAsFloat(StorageType type) {
  switch (type) {
    case StorageType::kF32:
    case StorageType::kF16:
    case StorageType::kBF16:
    case StorageType::kQ4_0:
    case StorageType::kQ4_1:
    case StorageType::kQ8_0:
    case StorageType::kQ4_K:
    case StorageType::kQ6_K:
      return true;
    default:
      return false;
  }
}

}  // namespace longhaul::formats
