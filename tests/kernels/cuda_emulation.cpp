// Runs the kernels of csrc/cuda/rows.cuh on the CPU: the threads of a block are coroutines, those of a warp in lockstep
// between shuffles, and each warp runs as far ahead of the others as the barriers let it, warp 0 last. Every access to
// the watched buffers is checked and counted. What device.cuh gives is replaced here; everything else is the code that
// nvcc compiles.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "shape.h"

// ---- The language ----

#define SRPO_DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time
#define __syncthreads() srpo::cuda::barrier()
using std::min;

struct Index {
  int x;
};
static Index threadIdx, blockIdx, gridDim;

namespace srpo::cuda {

constexpr size_t kStack = 64 << 10;
static ucontext_t scheduler, threads[kThreads];
static bool done[kThreads], waiting[kThreads];
static int shuffles[kThreads];
static float exchanged[kThreads][2];

static void yield() { swapcontext(&threads[threadIdx.x], &scheduler); }

// The scheduler lets all go on once every thread waits.
static void barrier() {
  waiting[threadIdx.x] = true;
  while (waiting[threadIdx.x]) yield();
}

// By the time a thread runs again, its whole warp has put its values down; the next shuffle uses the other slots.
static float shuffle_down(float value, int distance) {
  const int me = threadIdx.x, slot = shuffles[me]++ % 2;
  exchanged[me][slot] = value;
  yield();
  const int from = me % 32 + distance < 32 ? me + distance : me;
  if (shuffles[from] < shuffles[me]) std::fputs("a lane missed a shuffle\n", stderr), std::abort();
  return exchanged[from][slot];
}

static std::function<void()> body;
static void enter() {
  body();
  done[threadIdx.x] = true;
}

// Lets each thread of a warp go on to its next shuffle or barrier; whether there were any to go on.
static bool run(int first) {
  bool any = false;
  for (int t = first; t < first + 32; ++t) {
    if (done[t] || waiting[t]) continue;
    any = true;
    threadIdx.x = t;
    swapcontext(&scheduler, &threads[t]);
  }
  return any;
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int blocks, Arguments... arguments) {
  static std::vector<std::unique_ptr<char[]>> stacks(kThreads);
  gridDim.x = blocks;
  body = [=] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (int t = 0; t < kThreads; ++t) {
      if (!stacks[t]) stacks[t].reset(new char[kStack]);
      getcontext(&threads[t]);
      threads[t].uc_stack = {stacks[t].get(), 0, kStack};
      threads[t].uc_link = &scheduler;
      makecontext(&threads[t], enter, 0);
      done[t] = waiting[t] = false;
      shuffles[t] = 0;
    }
    for (;;) {
      for (int warp = kWarps - 1; warp >= 0; --warp)
        while (run(warp * 32)) {
        }
      const auto ended = std::count(done, done + kThreads, true);
      if (ended == kThreads) break;
      if (ended > 0) std::fputs("some threads ended before a barrier\n", stderr), std::abort();
      std::fill_n(waiting, kThreads, false);
    }
  }
}

// ---- Memory ----

struct Buffer {
  const char* base;
  int64_t bytes;
  uint8_t* touched;  // times, by byte
};
static Buffer read_from, written_to;

static void touch(const Buffer& buffer, const void* address, int64_t bytes) {
  const int64_t at = static_cast<const char*>(address) - buffer.base;
  const bool aligned = reinterpret_cast<uintptr_t>(address) % bytes == 0;
  if (at < 0 || at + bytes > buffer.bytes || !aligned)
    std::fprintf(stderr, "%ld bytes at offset %ld of %ld\n", long(bytes), long(at), long(buffer.bytes)), std::abort();
  for (int64_t i = 0; i < bytes; ++i) ++buffer.touched[at + i];
}

struct alignas(16) Vector {
  uint32_t words[4];
};

static Vector load(const void* source) {
  touch(read_from, source, 16);
  return *static_cast<const Vector*>(source);
}

static void store(void* target, const Vector& v) {
  touch(written_to, target, 16);
  *static_cast<Vector*>(target) = v;
}

template <typename T>
T load_one(const T* source) {
  touch(read_from, source, sizeof(T));
  return *source;
}

template <typename T>
void store_one(T* target, T value) {
  touch(written_to, target, sizeof(T));
  *target = value;
}

// ---- Arithmetic ----

// As wrong as the hardware's may be: by 2^-22, up or down.
static float exp2_approximate(float x) {
  const float y = std::exp2f(x);
  if (y < 0x1p-126f) return 0.0f;
  return y * (1.0f + (std::bit_cast<uint32_t>(x) * 2654435761u >> 31 ? 0x1p-22f : -0x1p-22f) * (x != 0));
}

static float max_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }

template <typename T>
struct Word;

template <>
struct Word<float> {
  static constexpr uint32_t kMinusInfinity = 0xff800000u;
  static void unpack(uint32_t w, float* x) { x[0] = std::bit_cast<float>(w); }
  static uint32_t pack(const float* x) { return std::bit_cast<uint32_t>(x[0]); }
  static uint32_t max(uint32_t a, uint32_t b) {
    return std::bit_cast<uint32_t>(std::fmax(std::bit_cast<float>(a), std::bit_cast<float>(b)));
  }
};

template <typename T>
struct Pair {
  static constexpr uint32_t kMinusInfinity = std::is_same_v<T, c10::Half> ? 0xfc00fc00u : 0xff80ff80u;
  static void unpack(uint32_t w, float* x) {
    for (int i = 0; i < 2; ++i) x[i] = T(static_cast<uint16_t>(w >> 16 * i), T::from_bits());
  }
  static uint32_t pack(const float* x) { return T(x[0]).x | uint32_t{T(x[1]).x} << 16; }
  static uint32_t max(uint32_t a, uint32_t b) {
    float x[2], y[2];
    unpack(a, x), unpack(b, y);
    for (int i = 0; i < 2; ++i) x[i] = std::fmax(x[i], y[i]);
    return pack(x);
  }
};
template <>
struct Word<BFloat16> : Pair<c10::BFloat16> {};
template <>
struct Word<Half> : Pair<c10::Half> {};

}  // namespace srpo::cuda

#include "rows.cuh"

// ---- For the tests: as launched by logprob.cu, on a device of so many multiprocessors ----

namespace srpo::cuda {

struct Call {
  int element_bytes, bfloat16;
  int64_t rows, stride, columns, columns_total;
  double temperature;
  int64_t multiprocessors;
  Buffer read, written;
  Shape shape() const {
    return make_shape(
        rows, stride, static_cast<int>(columns), static_cast<int>(columns_total), element_bytes, temperature,
        static_cast<int>(multiprocessors));
  }
};

template <typename Body>
void dispatch(const Call& call, const Body& run) {
  read_from = call.read, written_to = call.written;
  if (call.element_bytes == 4) run(static_cast<float*>(nullptr));
  else if (call.bfloat16) run(static_cast<BFloat16*>(nullptr));
  else run(static_cast<Half*>(nullptr));
}

extern "C" int statistics(const Call* call, const void* logits, const int64_t* tokens, float* out) {
  const Shape shape = call->shape();
  dispatch(*call, [&]<typename T>(T*) {
    std::vector<Partial> partials(shape.splits > 1 ? shape.rows * shape.segments * kThreads : 0);
    const auto* x = static_cast<const T*>(logits);
    launch(statistics_kernel<T>, shape.blocks, x, tokens, shape, partials.data(), out);
    if (shape.splits > 1) launch(merge_kernel<T>, static_cast<int>(shape.rows), x, tokens, shape, partials.data(), out);
  });
  return shape.splits;
}

extern "C" int gradient(const Call* call, const float* grad, const float* statistics, const void* logits,
                        const int64_t* tokens, void* out, int64_t out_stride) {
  const Shape shape = call->shape();
  dispatch(*call, [&]<typename T>(T*) {
    launch(gradient_kernel<T>, shape.blocks, grad, statistics, static_cast<const T*>(logits), tokens, shape,
           static_cast<T*>(out), out_stride);
  });
  return shape.splits;
}

extern "C" int scale(const Call* call, void* matrix, const float* factors, int64_t factors_stride) {
  const Shape shape = call->shape();
  dispatch(*call, [&]<typename T>(T*) {
    launch(scale_kernel<T>, shape.blocks, static_cast<T*>(matrix), factors, factors_stride, shape);
  });
  return shape.splits;
}

}  // namespace srpo::cuda
