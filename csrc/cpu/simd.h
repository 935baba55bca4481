// Sixteen floats at a time in plain C++: the compiler's vector types become one AVX-512, two AVX2 or four SSE/NEON
// registers, so one source serves every instruction set and `target_clones` picks among them when the library loads.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <limits>

#define SRPO_INLINE inline __attribute__((always_inline))
#ifndef SRPO_CLONES  // tests compile each instruction set by itself
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SRPO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SRPO_CLONES
#endif
#endif

namespace srpo::cpu {

constexpr int64_t kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));

// Thirty-two elements in whatever order is cheapest to read: sums and maxima do not care, and store() undoes it.
struct Pair {
  Floats a, b;
};

SRPO_INLINE Floats broadcast(float value) { return Floats{} + value; }

SRPO_INLINE Pair load(const float* source) {
  Pair values;
  std::memcpy(&values, source, sizeof(values));
  return values;
}

SRPO_INLINE void store(float* target, Pair values) { std::memcpy(target, &values, sizeof(values)); }

// Even elements in a, odd ones in b: a shift and a mask, where widening them in order takes four instructions.
SRPO_INLINE Pair load(const c10::BFloat16* source) {
  Ints bits;
  std::memcpy(&bits, source, sizeof(bits));
  return {(Floats)(bits << 16), (Floats)(bits & int32_t(0xffff0000))};
}

// The bits of bfloat16 in the upper half, rounded to nearest, ties to even.
SRPO_INLINE Ints round_to_bfloat16(Floats values) {
  const Ints bits = (Ints)values;
  const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (values != values) ? bits | 0x400000 : rounded;  // rounding could carry a NaN into infinity
}

SRPO_INLINE void store(c10::BFloat16* target, Pair values) {
  const Ints low = (round_to_bfloat16(values.a) >> 16) & 0xffff;
  const Ints bits = low | (round_to_bfloat16(values.b) & int32_t(0xffff0000));
  std::memcpy(target, &bits, sizeof(bits));
}

// Halves in the upper 16 bits.
SRPO_INLINE Floats half_to_float(Ints bits) {
  const Ints shifted = (bits >> 3) & int32_t(0x8fffe000);  // the sign bit stays
  // Read with float's bias, a half is too small by 2^(127-15); subnormals come out right, infinity and NaN apart.
  const Floats finite = (Floats)shifted * 0x1p112f;
  return (Floats)((Ints)finite | (((bits & 0x7c000000) == 0x7c000000) & 0x7f800000));
}

// Its inverse, rounded to nearest, ties to even: the hardware rounds a float to a half's subnormal spacing when a power
// of two is added, and a normal's mantissa by the same carry as in bfloat16.
SRPO_INLINE Ints float_to_half(Floats values) {
  const Ints bits = (Ints)values & 0x7fffffff;
  const Ints sign = ((Ints)values >> 16) & 0x8000;
  const Ints subnormal = (Ints)((Floats)bits + 0.5f) - 0x3f000000;
  const Ints normal = (bits - (112 << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
  const Ints overflow = Ints{} + 0x7c00;
  const Ints finite = (bits < (113 << 23)) ? subnormal : ((bits >= 0x477ff000) ? overflow : normal);
  return sign | ((bits > 0x7f800000) ? Ints{} + 0x7e00 : finite);
}

SRPO_INLINE Pair load(const c10::Half* source) {
  Ints bits;
  std::memcpy(&bits, source, sizeof(bits));
  return {half_to_float(bits << 16), half_to_float(bits & int32_t(0xffff0000))};
}

SRPO_INLINE void store(c10::Half* target, Pair values) {
  const Ints bits = float_to_half(values.a) | (float_to_half(values.b) << 16);
  std::memcpy(target, &bits, sizeof(bits));
}

// b where a is NaN, like the hardware's instruction.
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

// The smallest argument of exp2_nonpositive, for which it is exactly 0.
constexpr float kSmallest = -127.0f;

// 2^x for kSmallest <= x <= 0, within 2 units in the last place down to 2^-126 (polynomial of Cephes' exp2f); NaN stays
// NaN.
SRPO_INLINE Floats exp2_nonpositive(Floats x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Floats shifted = x + kRound;
  const Floats r = x - (shifted - kRound);
  Floats p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  const Floats power = (Floats)(((Ints)shifted << 23) + 0x3f800000);
  return p * power;  // not by adding to p's exponent, which would turn some NaNs into numbers
}

}  // namespace srpo::cpu
