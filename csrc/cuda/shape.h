// What host and device agree on: element types, a launch's geometry, and how many blocks share a row.
#pragma once

#include <algorithm>
#include <cstdint>

namespace srpo::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Enough bytes in flight to cover the memory's latency: 4 loads of 16 bytes x 256 threads x 4 blocks = 64 KiB a
// multiprocessor, at up to 64 registers a thread.
constexpr int kUnroll = 4;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kMaxSplits = 32;  // one warp merges them

// Row r of the logits starts at r * stride, of a gradient apart from them at r * columns_total; unit column stride.
struct Shape {
  int64_t rows;
  int64_t stride;
  int columns;        // that take part
  int columns_total;  // with padding
  int splits;         // blocks that share a row
  float inverse_temperature;
};

// Few rows are split, so that every multiprocessor has work, as long as each block has a full round of loads to issue.
inline int splits(int64_t rows, int64_t row_bytes, int multiprocessors) {
  const int64_t wanted = rows > 0 ? int64_t{multiprocessors} * kBlocksPerMultiprocessor / rows : 1;
  const int64_t useful = row_bytes / (16 * kThreads * kUnroll);
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, useful), 1, kMaxSplits));
}

// A persistent grid: no more blocks than run at once, which __launch_bounds__ guarantees the registers for.
inline int blocks(const Shape& shape, int multiprocessors) {
  return static_cast<int>(
      std::min(shape.rows * shape.splits, int64_t{multiprocessors} * kBlocksPerMultiprocessor));
}

}  // namespace srpo::cuda
