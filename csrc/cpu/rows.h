// Rows of logits: what the operators check of them, how threads share them, and the two sweeps over one row.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <vector>

#include "../check.h"
#include "segment.h"

namespace srpo::cpu {

void set_num_threads(int64_t threads);
int64_t num_threads();

// body(begin, end) over [0, count) on at most num_threads() threads.
template <typename Body>
void parallel(int64_t count, const Body& body) {
  at::parallel_for(0, count, std::max<int64_t>(1, (count + num_threads() - 1) / num_threads()), body);
}

#define SRPO_DISPATCH(TENSOR, ...)                            \
  AT_DISPATCH_SWITCH(                                         \
      (TENSOR).scalar_type(), "srpo",                         \
      AT_DISPATCH_CASE(at::ScalarType::Float, __VA_ARGS__)    \
      AT_DISPATCH_CASE_REDUCED_FLOATING_TYPES(__VA_ARGS__))

// Logits [N, width] of which the first `columns` take part; unit column stride.
struct Rows {
  int64_t count, columns, width, stride;
  double temperature;

  double octaves() const { return kLog2e / temperature; }
  bool has(int64_t token) const { return token >= 0 && token < columns; }
};

inline Rows check(const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns) {
  check_rows(logits, tokens, temperature, columns);
  return {logits.size(0), columns, logits.size(1), logits.stride(0), temperature};
}

// A new [rows, width] tensor for a gradient. Its pages are first touched as it is written, and by the 4 KiB that takes
// longer than the arithmetic: ask for large ones where the system leaves it to the program.
inline at::Tensor new_gradient(const at::Tensor& like, int64_t rows, int64_t width) {
  at::Tensor tensor = at::empty({rows, width}, like.options());
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 1 << 21;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr()), end = begin + tensor.nbytes();
  const uintptr_t from = (begin + kHuge - 1) / kHuge * kHuge, to = end / kHuge * kHuge;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // advice: may fail
#endif
  return tensor;
}

// row(r, sweep) for every row, where sweep(body) calls body(i) for each segment of the row. With fewer rows than threads
// it is the segments that are shared among them; the arithmetic, and so every bit, stays the same.
template <typename Row>
void for_each_row(const Rows& rows, const Row& row) {
  const int64_t segments = (rows.columns + kSegment - 1) / kSegment;
  if (rows.count >= num_threads()) {
    parallel(rows.count, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r)
        row(r, [&](const auto& body) {
          for (int64_t i = 0; i < segments; ++i) body(i);
        });
    });
  } else {
    for (int64_t r = 0; r < rows.count; ++r)
      row(r, [&](const auto& body) {
        parallel(segments, [&](int64_t from, int64_t to) {
          for (int64_t i = from; i < to; ++i) body(i);
        });
      });
  }
}

template <typename T, typename Sweep>
Statistics row_statistics(const T* x, const Rows& rows, const Sweep& sweep) {
  std::vector<Statistics> parts((rows.columns + kSegment - 1) / kSegment);
  const double octaves = rows.octaves();
  sweep([&](int64_t i) {
    const int64_t j = i * kSegment;
    parts[i] = segment_statistics(x + j, std::min(kSegment, rows.columns - j), static_cast<float>(octaves));
  });
  Statistics total;
  for (const Statistics& part : parts) total.merge(part, octaves);
  return total;
}

// out_j = 2^d_j (constant + slope d_j), plus `target` at the token; x and out may be the same row.
template <typename T, typename Sweep>
void row_gradient(
    const T* x, int64_t token, float maximum, double constant, double slope, double target, const Rows& rows,
    const Sweep& sweep, T* out) {
  std::fill(out + rows.columns, out + rows.width, T(0.0f));
  if (constant == 0 && slope == 0 && target == 0) {  // masked or clipped: whatever the logits hold
    std::fill(out, out + rows.columns, T(0.0f));
    return;
  }
  const float m = maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum;
  const double octaves = rows.octaves();
  double own = target;
  if (rows.has(token)) {  // added before rounding to T: p_y - 1 of a likely token would vanish after it
    const double d = (static_cast<double>(static_cast<float>(x[token])) - m) * octaves, e = std::exp2(d);
    if (e != 0) own += e * (constant + slope * d);  // also when it is NaN
  }
  sweep([&](int64_t i) {
    const int64_t j = i * kSegment;
    segment_gradient(
        x + j, std::min(kSegment, rows.columns - j), m, static_cast<float>(octaves), static_cast<float>(constant),
        static_cast<float>(slope), out + j);
  });
  if (rows.has(token)) out[token] = static_cast<T>(static_cast<float>(own));
}

}  // namespace srpo::cpu
