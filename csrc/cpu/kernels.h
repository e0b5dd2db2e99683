// The CPU kernels of one instruction set, as a table of functions over ranges of points and
// channels. Each range is independent of how the ranges are cut, so any schedule gives the same
// bits.
#pragma once

#include <cstdint>

namespace crad {

enum class ValueType { float64, float32, bfloat16, float16 };
enum class CoordType { float64, float32 };

// A call. Points are those of all batch items, in row-major order.
struct Problem {
  ValueType value_type;
  CoordType coord_type;
  const void* values;      // (batch, *size, channels)
  const void* coords;      // (points, ndim)
  const int64_t* seed;     // null: no jitter
  const void* jitter_std;  // (ndim), of coord_type
  int ndim;
  int64_t size[8];
  int64_t channels;
  int64_t entries;  // of one grid
  int64_t points_per_grid;
  int64_t mode, padding, derivative;
  bool align_corners;
  bool large_output;  // larger than a core's caches: better written past them
};

// Half-open ranges; the points of one range lie in one batch item.
struct Range {
  int64_t point_begin, point_end;
  int64_t channel_begin, channel_end;
};

// A part of the backward pass: any of the pointers may be null.
struct Gradients {
  const void* grad_output;  // (points, channels)
  void* grad_values;        // (entries, channels) of the range's grid, in the accumulator's type
  void* grad_coords;        // (points, ndim), of coord_type: the share of the range's channels
};

struct Kernels {
  void (*forward)(const Problem&, const Range&, void* output);
  void (*backward)(const Problem&, const Range&, const Gradients&);
  // Sums `parts` arrays of `count` elements that lie `stride` apart, in order, into `to`.
  void (*sum_values)(ValueType, const void* parts, int64_t number, int64_t stride, void* to,
                     int64_t begin, int64_t end);
  void (*sum_coords)(CoordType, const void* parts, int64_t number, int64_t stride, void* to,
                     int64_t begin, int64_t end);
};

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace crad
