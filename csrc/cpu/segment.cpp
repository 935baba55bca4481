#include "segment.h"

#include <algorithm>

#include "simd.h"

namespace srpo::cpu {
namespace {

constexpr int64_t kBlock = 4096;  // stays in the first-level cache between finding its maximum and its sums
constexpr int64_t kWidth = 2 * kLanes;
constexpr int64_t kUnroll = 2;  // independent accumulators hide the latency of add and max

// The last elements of a run, -inf after them.
template <typename T>
SRPO_INLINE Pair load_tail(const T* source, int64_t count) {
  T values[kWidth];
  std::fill(values, values + kWidth, static_cast<T>(-kInfinity));
  std::copy(source, source + count, values);
  return load(values);
}

SRPO_INLINE Floats distance(Floats x, float maximum_, float octaves) {
  // Bounded where 2^d is 0, so that 0 * -inf never forms; NaN passes.
  return maximum(broadcast(kSmallest), (x - maximum_) * octaves);
}

template <typename T>
SRPO_INLINE float block_max(const T* x, int64_t count) {
  Pair best[kUnroll];
  for (auto& b : best) b = {broadcast(-kInfinity), broadcast(-kInfinity)};
  const auto take = [](Pair values, Pair& b) __attribute__((always_inline)) {
    b.a = maximum(values.a, b.a);
    b.b = maximum(values.b, b.b);
  };
  int64_t j = 0;
  for (; j + kUnroll * kWidth <= count; j += kUnroll * kWidth)
    for (int64_t u = 0; u < kUnroll; ++u) take(load(x + j + u * kWidth), best[u]);
  for (; j + kWidth <= count; j += kWidth) take(load(x + j), best[0]);
  if (j < count) take(load_tail(x + j, count - j), best[0]);
  return reduce_max(maximum(maximum(best[0].a, best[0].b), maximum(best[1].a, best[1].b)));
}

// A block's sums are floats in 64 lanes, the row's are doubles, so that the error does not grow with V.
template <typename T>
SRPO_INLINE void block_sums(const T* x, int64_t count, float m, float octaves, double& s, double& t) {
  Pair sum[kUnroll] = {}, term[kUnroll] = {};
  const auto take = [&](Pair values, Pair& s, Pair& t) __attribute__((always_inline)) {
    const Floats a = distance(values.a, m, octaves), b = distance(values.b, m, octaves);
    const Floats ea = exp2_nonpositive(a), eb = exp2_nonpositive(b);
    s.a += ea;
    s.b += eb;
    t.a += ea * a;
    t.b += eb * b;
  };
  int64_t j = 0;
  for (; j + kUnroll * kWidth <= count; j += kUnroll * kWidth) {
    // The next block, into the second-level cache, while this one keeps the arithmetic units busy.
    for (size_t line = 0; line < kUnroll * kWidth * sizeof(T); line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(x + j + kBlock) + line);
    for (int64_t u = 0; u < kUnroll; ++u) take(load(x + j + u * kWidth), sum[u], term[u]);
  }
  for (; j + kWidth <= count; j += kWidth) take(load(x + j), sum[0], term[0]);
  if (j < count) take(load_tail(x + j, count - j), sum[0], term[0]);
  s += reduce_add((sum[0].a + sum[0].b) + (sum[1].a + sum[1].b));
  t += reduce_add((term[0].a + term[0].b) + (term[1].a + term[1].b));
}

template <typename T>
SRPO_INLINE Statistics statistics(const T* x, int64_t columns, float octaves) {
  Statistics total;
  for (int64_t j = 0; j < columns; j += kBlock) {
    const int64_t count = std::min(kBlock, columns - j);
    const float best = block_max(x + j, count);
    if (best > total.maximum) {
      total.rescale(best, octaves);
      total.maximum = best;
    }
    // A block of -inf alone has no maximum to subtract, but a NaN in it must still reach the sum.
    if (total.maximum == -kInfinity)
      for (int64_t i = 0; i < count; ++i) total.sum += static_cast<float>(x[j + i]) == -kInfinity ? 0.0 : NAN;
    else
      block_sums(x + j, count, total.maximum, octaves, total.sum, total.term);
  }
  return total;
}

template <typename T>
SRPO_INLINE void gradient(
    const T* x, int64_t count, float m, float octaves, float constant, float slope, T* out) {
  const auto one = [&](Floats values) __attribute__((always_inline)) {
    const Floats d = distance(values, m, octaves);
    return exp2_nonpositive(d) * (d * slope + constant);
  };
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) {
    const Pair values = load(x + j);
    store(out + j, {one(values.a), one(values.b)});
  }
  if (j < count) {
    const Pair values = load_tail(x + j, count - j);
    T tail[kWidth];
    store(tail, {one(values.a), one(values.b)});
    std::copy(tail, tail + count - j, out + j);
  }
}

template <typename T>
SRPO_INLINE void multiply(T* x, int64_t count, float scale) {
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) {
    const Pair values = load(x + j);
    store(x + j, {values.a * scale, values.b * scale});
  }
  for (; j < count; ++j) x[j] = static_cast<T>(static_cast<float>(x[j]) * scale);
}

}  // namespace

// Compilers clone plain functions, not templates: one a type.
#define SRPO_DEFINE(T)                                                                                             \
  SRPO_CLONES Statistics segment_statistics(const T* x, int64_t count, float octaves) {                            \
    return statistics(x, count, octaves);                                                                          \
  }                                                                                                                \
  SRPO_CLONES void segment_gradient(                                                                               \
      const T* x, int64_t count, float maximum, float octaves, float constant, float slope, T* out) {              \
    gradient(x, count, maximum, octaves, constant, slope, out);                                                    \
  }                                                                                                                \
  SRPO_CLONES void segment_scale(T* x, int64_t count, float scale) { multiply(x, count, scale); }
SRPO_DEFINE(float)
SRPO_DEFINE(c10::BFloat16)
SRPO_DEFINE(c10::Half)
#undef SRPO_DEFINE

}  // namespace srpo::cpu
