// Stored rows -> floats, bit-equal to the `gguf` package's dequantize (products and sums rounded one by one, no FMA).
#pragma once

#include <cstdint>

#include "worker/formats/tensor_info.h"

namespace longhaul::formats {

// out[r, c] = value of element (r, c) of `src`, which holds rows x cols elements of `type`, row after row, packed.
// Types: IsReadableAsFloat(type). out: rows x cols f32.
// REQUIRES: cols % BlockElements(type) == 0. src needs no alignment. out must not alias src.
// Any number of threads on different rows. A broken requirement is a CHECK.
// Source: ggml's block formats, FORMATS.md section 8. Tests: tests/worker/formats/dequant_test.cc
void DequantizeRows(StorageType type, const void* src, int64_t rows, int64_t cols, float* out);

}  // namespace longhaul::formats
