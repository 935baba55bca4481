// What the kernels ask of the hardware, in a few functions: 16-byte accesses, packed 16-bit arithmetic, 2^x, shuffles.
// The tests put functions of the same names in their place and run rows.cuh on the CPU.
#pragma once

#include <cstdint>

#include "shape.h"

#define SRPO_DEVICE __device__ __forceinline__

namespace srpo::cuda {

struct alignas(16) Vector {
  uint32_t words[4];
};

// A row is read and written once: evict-first keeps it from displacing what others left in the caches. These are the
// coherent loads, not ld.global.nc: the gradient may be written over the logits.
SRPO_DEVICE Vector load(const void* source) {
  const uint4 v = __ldcs(static_cast<const uint4*>(source));
  return {v.x, v.y, v.z, v.w};
}

SRPO_DEVICE void store(void* target, const Vector& v) {
  __stcs(static_cast<uint4*>(target), make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]));
}

template <typename T>
SRPO_DEVICE T load_one(const T* source) {
  return *source;
}

template <typename T>
SRPO_DEVICE void store_one(T* target, T value) {
  *target = value;
}

// 2^x, 2 units in the last place; 0 below -126.
SRPO_DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// fmaxf drops a NaN, this one keeps it.
SRPO_DEVICE float max_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

SRPO_DEVICE float shuffle_down(float value, int distance) { return __shfl_down_sync(0xffffffffu, value, distance); }

// A 32-bit word of logits: its elements, the first in the low bits, and their maximum (which drops NaN).
template <typename T>
struct Word;

template <>
struct Word<float> {
  static constexpr uint32_t kMinusInfinity = 0xff800000u;
  static SRPO_DEVICE void unpack(uint32_t w, float* x) { x[0] = __uint_as_float(w); }
  static SRPO_DEVICE uint32_t pack(const float* x) { return __float_as_uint(x[0]); }
  static SRPO_DEVICE uint32_t max(uint32_t a, uint32_t b) {
    return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
  }
};

template <>
struct Word<BFloat16> {
  static constexpr uint32_t kMinusInfinity = 0xff80ff80u;
  static SRPO_DEVICE void unpack(uint32_t w, float* x) {
    x[0] = __uint_as_float(w << 16);
    x[1] = __uint_as_float(w & 0xffff0000u);
  }
  static SRPO_DEVICE uint32_t pack(const float* x) {
    uint32_t w;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(x[1]), "f"(x[0]));
    return w;
  }
  static SRPO_DEVICE uint32_t max(uint32_t a, uint32_t b) {
    uint32_t w;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(w) : "r"(a), "r"(b));
    return w;
  }
};

template <>
struct Word<Half> {
  static constexpr uint32_t kMinusInfinity = 0xfc00fc00u;
  static SRPO_DEVICE void unpack(uint32_t w, float* x) {
    asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi;}"
        : "=f"(x[0]), "=f"(x[1])
        : "r"(w));
  }
  static SRPO_DEVICE uint32_t pack(const float* x) {
    uint32_t w;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(x[1]), "f"(x[0]));
    return w;
  }
  static SRPO_DEVICE uint32_t max(uint32_t a, uint32_t b) {
    uint32_t w;
    asm("max.f16x2 %0, %1, %2;" : "=r"(w) : "r"(a), "r"(b));
    return w;
  }
};

}  // namespace srpo::cuda
