// Sixteen floats at a time in plain C++: the compiler's vector types become one AVX-512, two AVX2 or four SSE/NEON
// registers, so one source serves every instruction set and `target_clones` picks among them when the library loads.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <limits>

#define SRPO_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SRPO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SRPO_CLONES
#endif

namespace srpo::cpu {

constexpr int64_t kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Shorts = uint16_t __attribute__((vector_size(32)));

SRPO_INLINE Floats broadcast(float value) { return Floats{} + value; }

SRPO_INLINE Floats load(const float* source) {
  Floats values;
  std::memcpy(&values, source, sizeof(values));
  return values;
}

SRPO_INLINE Ints load_bits(const void* source) {
  Shorts bits;
  std::memcpy(&bits, source, sizeof(bits));
  return __builtin_convertvector(bits, Ints);
}

SRPO_INLINE Floats load(const c10::BFloat16* source) { return (Floats)(load_bits(source) << 16); }

SRPO_INLINE Floats load(const c10::Half* source) {
  const Ints bits = load_bits(source);
  const Ints magnitude = (bits & 0x7fff) << 13;
  // Read with float's bias, a half is too small by 2^(127-15); subnormals come out right, infinity and NaN apart.
  const Ints finite = (Ints)((Floats)magnitude * 0x1p112f);
  const Ints special = magnitude | 0x7f800000;
  return (Floats)((((bits & 0x7c00) == 0x7c00) ? special : finite) | ((bits & 0x8000) << 16));
}

SRPO_INLINE void store(float* target, Floats values) { std::memcpy(target, &values, sizeof(values)); }

SRPO_INLINE void store(c10::BFloat16* target, Floats values) {
  const Ints bits = (Ints)values;
  const Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Ints nan = (bits >> 16) | 0x40;                             // rounding could carry a NaN into infinity
  const Shorts narrow = __builtin_convertvector((values != values) ? nan : rounded, Shorts);
  std::memcpy(target, &narrow, sizeof(narrow));
}

SRPO_INLINE void store(c10::Half* target, Floats values) {
  for (int64_t i = 0; i < kLanes; ++i) target[i] = c10::Half(values[i]);
}

SRPO_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

SRPO_INLINE float reduce_max(Floats v) {
  float result = v[0];
  for (int64_t i = 1; i < kLanes; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

SRPO_INLINE double reduce_add(Floats v) {
  double result = 0;
  for (int64_t i = 0; i < kLanes; ++i) result += v[i];
  return result;
}

// exp(x) for x <= 0, within 2 units in the last place (Cephes' polynomial); exactly 0 below -87; NaN stays NaN.
SRPO_INLINE Floats exp_nonpositive(Floats x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const Floats power = (Floats)(((Ints)shifted << 23) + 0x3f800000);  // 2^n
  return x < -87.0f ? broadcast(0.0f) : p * power;
}

}  // namespace srpo::cpu
