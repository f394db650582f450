// How the CPU ops get vector code on any x86-64: a loop is compiled once per level of the architecture and the loader
// picks one (AVX-512, AVX2 with FMA, or the baseline). One machine always runs the same variant, so its bits are
// stable; two machines may differ in the last bit, because the widths of sums differ.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// ThreadSanitizer instruments the resolvers, which run before it is ready: there the baseline is used.
#if defined(__SANITIZE_THREAD__)
#define LONGHAUL_SIMD
#else
#define LONGHAUL_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

// Helpers of LONGHAUL_SIMD functions must be inlined into each variant, or they would stay at the baseline.
#define LONGHAUL_SIMD_INLINE inline __attribute__((always_inline))

namespace longhaul::kernels::cpu {

// e^x. Relative error below 2^-22 on [-87.3, 88.7] (tests/kernels/exp_test.cc); 0 below, infinity above, NaN stays NaN.
// Source: Cephes expf: x = n ln 2 + r, a polynomial of degree 6 in r, n put into the exponent.
LONGHAUL_SIMD_INLINE float Exp(float x) {
  constexpr float kLow = -87.33654f;  // ln of the smallest normal number
  constexpr float kHigh = 88.72283f;  // ln of the largest number
  const float clamped = x < kLow ? kLow : (x > kHigh ? kHigh : x);
  // Adding 1.5 * 2^23 rounds to an integer, whose bits are then the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  const float shifted = clamped * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // n is at most 128, one more than an exponent holds: half of it goes in at a time.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const int32_t half = exponent >> 1;
  const float scale_a = std::bit_cast<float>((half + 127) << 23);
  const float scale_b = std::bit_cast<float>((exponent - half + 127) << 23);
  float result = p * scale_a * scale_b;
  result = x < kLow ? 0.0f : result;
  result = x > kHigh ? std::numeric_limits<float>::infinity() : result;
  return x != x ? x : result;
}

LONGHAUL_SIMD_INLINE double Exp(double x) { return std::exp(x); }

template <typename T>
LONGHAUL_SIMD_INLINE T Sigmoid(T x) {
  return T{1} / (T{1} + Exp(-x));
}

// bf16 bits of x, rounded to nearest even; a NaN stays a (quiet) NaN.
LONGHAUL_SIMD_INLINE uint16_t ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? ((bits >> 16) | 0x40u) : rounded);
}

LONGHAUL_SIMD_INLINE float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

}  // namespace longhaul::kernels::cpu
