// Kernels over rows of logits: statistics (one read) and their gradient (one read, one write). A block takes a row, or
// part of one, at a time; the first and last elements of a misaligned or ragged row go one by one, the rest in vectors
// of 16 bytes. Partial results merge in a fixed order: every run gives the same bits.
//
// Exponents are in base 2 (the hardware's): d = (x - m) / T * log2(e), with x - m formed first, which is exact where it
// matters under a large common offset.
#pragma once

#ifdef __CUDACC__
#include "device.cuh"
#endif

namespace srpo::cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
// 2^d is exactly 0 from -126 down. d stops here, so that 0 * -inf never forms.
constexpr float kLowest = -200.0f;

template <typename T>
constexpr int kVector = 16 / sizeof(T);  // elements

// The columns that are loaded in vectors, and the edges that are not.
template <typename T>
struct Layout {
  int head;     // elements before the first address divisible by 16
  int vectors;  // then
  int edges;    // head and tail together

  SRPO_DEVICE Layout(const T* row, int count) : Layout(row, row, count) {}

  // Vectors only if both rows are misaligned alike.
  SRPO_DEVICE Layout(const T* row, const T* other, int count) {
    const auto address = reinterpret_cast<uintptr_t>(row);
    const bool alike = (address - reinterpret_cast<uintptr_t>(other)) % 16 == 0;
    const int before = static_cast<int>((16 - address % 16) % 16 / sizeof(T));
    head = alike && before < count ? before : count;
    vectors = (count - head) / kVector<T>;
    edges = count - vectors * kVector<T>;
  }

  SRPO_DEVICE int edge(int i) const { return i < head ? i : i + vectors * kVector<T>; }
};

// Block `index` of the `count` that share a row takes [first(n), last(n)) of its n vectors or segments.
struct Split {
  int index, count;
  SRPO_DEVICE int first(int n) const { return static_cast<int>(int64_t{n} * index / count); }
  SRPO_DEVICE int last(int n) const { return static_cast<int>(int64_t{n} * (index + 1) / count); }
};

template <typename T>
SRPO_DEVICE float to_float(T value) {
  float x[kVector<T> / 4];
  Word<T>::unpack(value.bits, x);
  return x[0];
}
SRPO_DEVICE float to_float(float value) { return value; }

template <typename T>
SRPO_DEVICE T from_float(float value) {
  const float x[2] = {value, 0.0f};
  return {static_cast<uint16_t>(Word<T>::pack(x))};
}
template <>
SRPO_DEVICE float from_float(float value) {
  return value;
}

template <typename T>
SRPO_DEVICE void unpack(const Vector& v, float (&x)[kVector<T>]) {
  for (int w = 0; w < 4; ++w) Word<T>::unpack(v.words[w], x + w * kVector<T> / 4);
}

template <typename T>
SRPO_DEVICE Vector pack(const float (&x)[kVector<T>]) {
  Vector v;
  for (int w = 0; w < 4; ++w) v.words[w] = Word<T>::pack(x + w * kVector<T> / 4);
  return v;
}

// ---- Statistics ----

// Of some of a row's columns; term in base 2.
struct Partial {
  float maximum, sum, term;
};

SRPO_DEVICE Partial empty() { return {-INFINITY, 0.0f, 0.0f}; }

// What to subtract: a set of -inf alone has no maximum, and a NaN among them must still reach the sum.
SRPO_DEVICE float base(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

SRPO_DEVICE float exponent(float x, float base, float scale) { return max_or_nan((x - base) * scale, kLowest); }

// The same sums relative to another, larger maximum.
SRPO_DEVICE Partial rescale(const Partial& p, float maximum, float scale) {
  const float d = exponent(p.maximum, base(maximum), scale);
  const float e = exp2_approximate(d);
  return {maximum, e * p.sum, e * (p.term + d * p.sum)};
}

SRPO_DEVICE Partial merge(const Partial& a, const Partial& b, float scale) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  const Partial x = rescale(a, maximum, scale), y = rescale(b, maximum, scale);
  return {maximum, x.sum + y.sum, x.term + y.term};
}

// Lane 0 gets the merge of the warp.
SRPO_DEVICE Partial merge_warp(Partial p, float scale) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Partial other = {
        shuffle_down(p.maximum, distance), shuffle_down(p.sum, distance), shuffle_down(p.term, distance)};
    p = merge(p, other, scale);
  }
  return p;
}

// The maximum of a whole round of loads first: the running sums are rescaled once a round, not once an element.
template <typename T>
SRPO_DEVICE Partial accumulate(const Partial& p, const Vector (&round)[kUnroll], float scale) {
  uint32_t best = round[0].words[0];
#pragma unroll
  for (int i = 1; i < kUnroll * 4; ++i) best = Word<T>::max(best, round[i / 4].words[i % 4]);
  float x[kVector<T>];
  Word<T>::unpack(best, x);
  float maximum = p.maximum;
#pragma unroll
  for (int i = 0; i < kVector<T> / 4; ++i) maximum = fmaxf(maximum, x[i]);

  const float b = base(maximum);
  float sum = 0.0f, term = 0.0f;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    unpack<T>(round[u], x);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const float d = exponent(x[i], b, scale);
      const float e = exp2_approximate(d);
      sum += e;
      term += e * d;
    }
  }
  const Partial before = rescale(p, maximum, scale);
  return {maximum, before.sum + sum, before.term + term};
}

// This thread's share of a segment; the last one takes the edges.
template <typename T>
SRPO_DEVICE Partial segment_partial(const T* row, const Layout<T>& layout, int segment, int segments, float scale) {
  const auto* vectors = reinterpret_cast<const Vector*>(row + layout.head);
  const int last = min((segment + 1) * kSegment, layout.vectors);
  Partial p = empty();
  for (int v = segment * kSegment + threadIdx.x; v < last; v += kRound) {
    constexpr uint32_t none = Word<T>::kMinusInfinity;
    Vector round[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      round[u] = v + u * kThreads < last ? load(vectors + v + u * kThreads) : Vector{none, none, none, none};
    p = accumulate<T>(p, round, scale);
  }
  if (segment == segments - 1)
    for (int i = threadIdx.x; i < layout.edges; i += kThreads)
      p = merge(p, {to_float(load_one(row + layout.edge(i))), 1.0f, 0.0f}, scale);
  return p;
}

// Thread 0 gets the merge of the block, through of_warps [kWarps] in shared memory.
SRPO_DEVICE Partial merge_block(Partial p, Partial* of_warps, float scale) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  p = merge_warp(p, scale);
  if (lane == 0) of_warps[warp] = p;
  __syncthreads();
  return warp == 0 ? merge_warp(lane < kWarps ? of_warps[lane] : empty(), scale) : p;
}

template <typename T>
SRPO_DEVICE void write_statistics(const Partial& p, const T* row, int64_t token, int columns, float* statistics) {
  statistics[0] = p.maximum;
  statistics[1] = p.sum;
  statistics[2] = p.term * kLn2;
  statistics[3] = token >= 0 && token < columns ? to_float(load_one(row + token)) : 0.0f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) statistics_kernel(
    const T* logits, const int64_t* tokens, Shape shape, Partial* partials, float* statistics) {
  // Two sets, used in turn: one barrier a row is enough, as nobody writes a set before all have passed the other's.
  __shared__ Partial of_warps[2][kWarps];
  const float scale = shape.inverse_temperature * kLog2E;
  int set = 0;
  for (int64_t item = blockIdx.x; item < shape.rows * shape.splits; item += gridDim.x, set ^= 1) {
    const int64_t r = item / shape.splits;
    const Split split{static_cast<int>(item % shape.splits), shape.splits};
    const T* row = logits + r * shape.stride;
    const Layout<T> layout(row, shape.columns);
    Partial p = empty();
    for (int i = split.first(shape.segments); i < split.last(shape.segments); ++i) {
      const Partial segment = segment_partial(row, layout, i, shape.segments, scale);
      if (shape.splits == 1)
        p = merge(p, segment, scale);
      else
        partials[(r * shape.segments + i) * kThreads + threadIdx.x] = segment;
    }
    if (shape.splits > 1) continue;
    p = merge_block(p, of_warps[set], scale);
    if (threadIdx.x == 0) write_statistics(p, row, tokens[r], shape.columns, statistics + 4 * r);
  }
}

// Ends what several blocks began on a row, as one block would have: over its segments a thread, then over the threads.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(
    const T* logits, const int64_t* tokens, Shape shape, const Partial* partials, float* statistics) {
  __shared__ Partial of_warps[kWarps];
  const float scale = shape.inverse_temperature * kLog2E;
  const int64_t r = blockIdx.x;
  Partial p = empty();
  for (int i = 0; i < shape.segments; ++i)
    p = merge(p, partials[(r * shape.segments + i) * kThreads + threadIdx.x], scale);
  p = merge_block(p, of_warps, scale);
  if (threadIdx.x == 0)
    write_statistics(p, logits + r * shape.stride, tokens[r], shape.columns, statistics + 4 * r);
}

// ---- Gradients ----

// out_j = f(x_j): f(x, j) changes the elements x of columns j, j + 1, ... in place. out may be row.
template <typename T, typename F>
SRPO_DEVICE void map_row(const T* row, T* out, int columns, Split split, const F& f) {
  const Layout<T> layout(row, out, columns);
  const T* from = row + layout.head;
  T* to = out + layout.head;
  const int last = split.last(layout.vectors);
  for (int v = split.first(layout.vectors) + threadIdx.x; v < last; v += kRound) {
    Vector round[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (v + u * kThreads < last) round[u] = load(from + int64_t{v + u * kThreads} * kVector<T>);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (v + u * kThreads >= last) break;
      const int j = (v + u * kThreads) * kVector<T>;
      float x[kVector<T>];
      unpack<T>(round[u], x);
      f(x, layout.head + j);
      store(to + j, pack<T>(x));
    }
  }
  for (int i = split.index * kThreads + threadIdx.x; i < layout.edges; i += split.count * kThreads) {
    const int j = layout.edge(i);
    float x[1] = {to_float(load_one(row + j))};
    f(x, j);
    store_one(out + j, from_float<T>(x[0]));
  }
}

template <typename T>
SRPO_DEVICE void zero_row(T* out, int columns, Split split) {
  const Layout<T> layout(out, columns);
  auto* vectors = reinterpret_cast<Vector*>(out + layout.head);
  for (int v = split.first(layout.vectors) + threadIdx.x; v < split.last(layout.vectors); v += kThreads)
    store(vectors + v, Vector{0, 0, 0, 0});
  for (int i = split.index * kThreads + threadIdx.x; i < layout.edges; i += split.count * kThreads)
    store_one(out + layout.edge(i), from_float<T>(0.0f));
}

struct Gradient {
  float base, scale, constant, slope;  // exp(d) * (constant + slope * d)
  float of_target;
  int64_t token;

  template <int n>
  SRPO_DEVICE void operator()(float (&x)[n], int j) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float d = exponent(x[i], base, scale);
      x[i] = exp2_approximate(d) * (constant + slope * d);
    }
    // Before rounding to T: p_y - 1 of a likely token would vanish after it.
    if (static_cast<uint64_t>(token - j) < n) {
#pragma unroll
      for (int i = 0; i < n; ++i)
        if (token == j + i) x[i] += of_target;
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) gradient_kernel(
    const float* grad, const float* statistics, const T* logits, const int64_t* tokens, Shape shape, T* out,
    int64_t out_stride) {
  for (int64_t item = blockIdx.x; item < shape.rows * shape.splits; item += gridDim.x) {
    const int64_t r = item / shape.splits;
    const Split split{static_cast<int>(item % shape.splits), shape.splits};
    const float of_sum = grad[4 * r + 1], of_term = grad[4 * r + 2], of_target = grad[4 * r + 3];
    T* to = out + r * out_stride;
    if (of_sum == 0 && of_term == 0 && of_target == 0) {  // masked or clipped: whatever the logits hold
      zero_row(to, shape.columns_total, split);
      continue;
    }
    const float inverse = shape.inverse_temperature;
    const Gradient gradient{base(statistics[4 * r]), inverse * kLog2E, (of_sum + of_term) * inverse,
                            of_term * kLn2 * inverse, of_target, tokens[r]};
    map_row(logits + r * shape.stride, to, shape.columns, split, gradient);
    zero_row(to + shape.columns, shape.columns_total - shape.columns, split);
  }
}

struct Scale {
  float factor;

  template <int n>
  SRPO_DEVICE void operator()(float (&x)[n], int) const {
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] *= factor;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) scale_kernel(
    T* matrix, const float* scale, int64_t scale_stride, Shape shape) {
  for (int64_t item = blockIdx.x; item < shape.rows * shape.splits; item += gridDim.x) {
    const int64_t r = item / shape.splits;
    const float factor = scale[r * scale_stride];
    if (factor == 1.0f) continue;
    T* row = matrix + r * shape.stride;
    map_row(row, row, shape.columns, Split{static_cast<int>(item % shape.splits), shape.splits}, Scale{factor});
  }
}

}  // namespace srpo::cuda
