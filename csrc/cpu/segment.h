// The arithmetic over a run of a row's columns, compiled for each instruction set (segment.cpp).
//
// Distances from the maximum are counted in octaves, d = (x - m) log2(e) / T, so that exp((x - m) / T) is 2^d.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace srpo::cpu {

constexpr double kLog2e = 1.4426950408889634;

// A row is folded in segments of so many columns, whoever computes them: results do not depend on the thread count.
constexpr int64_t kSegment = 8192;

struct Statistics {
  float maximum = -std::numeric_limits<float>::infinity();
  double sum = 0;   // of 2^d
  double term = 0;  // of 2^d d

  void rescale(float to, double octaves) {
    if (to == maximum || maximum == -std::numeric_limits<float>::infinity()) return;
    const double d = (static_cast<double>(maximum) - to) * octaves;
    const double scale = std::exp2(d);
    term = scale == 0 ? 0 : scale * (term + d * sum);
    sum *= scale;
  }

  void merge(Statistics other, double octaves) {
    const float peak = other.maximum > maximum ? other.maximum : maximum;
    rescale(peak, octaves);
    other.rescale(peak, octaves);
    maximum = peak;
    sum += other.sum;  // a NaN or inf in the row is in its sums, if not in its maximum
    term += other.term;
  }
};

Statistics segment_statistics(const float* x, int64_t count, float octaves);
Statistics segment_statistics(const c10::BFloat16* x, int64_t count, float octaves);
Statistics segment_statistics(const c10::Half* x, int64_t count, float octaves);

// out = 2^d (constant + slope d), exactly 0 where 2^d is; x and out may be the same.
void segment_gradient(
    const float* x, int64_t count, float maximum, float octaves, float constant, float slope, float* out);
void segment_gradient(
    const c10::BFloat16* x, int64_t count, float maximum, float octaves, float constant, float slope,
    c10::BFloat16* out);
void segment_gradient(
    const c10::Half* x, int64_t count, float maximum, float octaves, float constant, float slope, c10::Half* out);

void segment_scale(float* x, int64_t count, float scale);
void segment_scale(c10::BFloat16* x, int64_t count, float scale);
void segment_scale(c10::Half* x, int64_t count, float scale);

}  // namespace srpo::cpu
