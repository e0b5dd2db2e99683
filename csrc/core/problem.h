// A call of the operator without its tensors: what the kernels of every backend are given.
#pragma once

#include <cstdint>

#include "axis.h"

namespace crad {

constexpr int kMaxDim = 8;

enum class ValueType { float64, float32, bfloat16, float16 };
enum class CoordType { float64, float32 };

// Axes are in the order of `size`, slowest first; the components of a coordinate come in the
// reverse order. Points are those of all batch items, in row-major order.
struct Problem {
  ValueType value_type;
  CoordType coord_type;
  const void* values;      // (grids, *size, channels), entries `row` elements apart
  bool planes;             // values are (grids, channels, *size) instead
  const void* coords;      // (grids * points_per_grid, ndim)
  const int64_t* seed;     // null: no jitter
  const void* jitter_std;  // (ndim), of coord_type
  int ndim;
  int64_t size[kMaxDim];
  int64_t channels;
  int64_t row;      // elements from an entry to the next: the channels, or more
  int64_t entries;  // of one grid
  int64_t grids;    // 1 if all points share one
  int64_t points_per_grid;
  Mode mode;
  Padding padding;
  bool align_corners;
  int64_t derivative;  // see order_along
};

// The order of the derivative that the weights along an axis are.
CRAD_INLINE int order_along(const Problem& problem, int axis) {
  return static_cast<int>(problem.derivative >> (4 * axis) & 15);
}

}  // namespace crad
