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

// What is tuned; kernels/srpo_kernels/tiles.py is the Triton kernels' table. One entry for every architecture, as host
// and device must agree on it and a build may hold code for several. SRPO_TILE: another one, to try it
// (benchmarks/static_cuda.py --tile, benchmarks/bench_tiles.py).
struct Tile {
  int threads;  // of a block
  int unroll;   // vectors of 16 bytes that a thread loads at once
  int blocks;   // resident on a multiprocessor, for which __launch_bounds__ keeps registers
};
#ifndef SRPO_TILE
// Chosen by compiling for sm_90a (docs/performance.md): no spills in 64 registers, and enough in flight to cover the
// memory's latency, 4 loads of 16 bytes x 256 threads x 4 blocks = 64 KiB a multiprocessor. Not measured.
#define SRPO_TILE {256, 4, 4}
#endif
constexpr Tile kTile = SRPO_TILE;
constexpr int kThreads = kTile.threads;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = kTile.unroll;
constexpr int kBlocksPerMultiprocessor = kTile.blocks;
constexpr int kRound = kThreads * kUnroll;  // vectors of 16 bytes that a block loads at once
// A row's sums are formed by segment, then over the segments in order, whichever block took which: a row's statistics
// depend neither on how many rows come with it nor on the device.
constexpr int kSegment = 2 * kRound;

// Row r of the logits starts at r * stride; unit column stride.
struct Shape {
  int64_t rows;
  int64_t stride;
  int columns;        // that take part
  int columns_total;  // with padding
  int segments;       // of a row
  int splits;         // blocks that share a row, some segments each
  int blocks;         // of the grid
  float inverse_temperature;
};

inline Shape make_shape(
    int64_t rows, int64_t stride, int columns, int columns_total, int element_bytes, double temperature,
    int multiprocessors) {
  const int64_t vectors = int64_t{columns} * element_bytes / 16;
  const int64_t segments = std::max<int64_t>(1, (vectors + kSegment - 1) / kSegment);
  // A persistent grid: no more blocks than run at once, which __launch_bounds__ keeps registers for.
  const int64_t resident = int64_t{multiprocessors} * kBlocksPerMultiprocessor;
  // Few rows are split, so that every multiprocessor has work.
  const int64_t splits = std::clamp<int64_t>(resident / std::max<int64_t>(1, rows), 1, segments);
  const int64_t blocks = std::min(rows * splits, resident);
  return {rows, stride, columns, columns_total, static_cast<int>(segments), static_cast<int>(splits),
          static_cast<int>(blocks), static_cast<float>(1.0 / temperature)};
}

}  // namespace srpo::cuda
