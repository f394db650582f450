// How the elements of a stored tensor are laid out: safetensors dtypes, GGUF block types and bitsandbytes' NF4.
// A tensor is a run of blocks; a plain type is a block of one element. Source: FORMATS.md sections 1, 2 and 8.
#pragma once

#include <cstdint>

namespace longhaul::formats {

enum class StorageType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
  kQ4_0,
  kQ4_1,
  kQ8_0,
  kQ4_K,
  kQ6_K,
  kNF4,  // packed codes; the block scales are other tensors (bnb_nf4.h)
};

// "F32", "Q4_1", ...: the name that the format's own documents use.
const char* StorageTypeName(StorageType type);
// Elements that are stored together, and their bytes. kNF4: two elements a byte, scales not counted.
int64_t BlockElements(StorageType type);
int64_t BlockBytes(StorageType type);

// Bytes of `elements` elements, or -1 where they are no whole number of blocks, are negative or overflow int64.
int64_t StorageBytes(StorageType type, int64_t elements);

// a * b for non-negative a and b, or -1 on overflow.
int64_t MultiplyOrMinusOne(int64_t a, int64_t b);

// True for the types that DequantizeRows turns into floats.
bool IsReadableAsFloat(StorageType type);

}  // namespace longhaul::formats
