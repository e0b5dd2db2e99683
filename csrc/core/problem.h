// A call of the operator without its tensors: what the kernels of every backend are given.
#pragma once

#include <cstdint>

#include "axis.h"
#include "numbers.h"

namespace crad {

constexpr int kMaxDim = 8;
// Of a call with several grids.
constexpr int kMostLevelAxes = 4;
constexpr int64_t kMostLevelChannels = 8;

enum class ValueType { float64, float32, bfloat16, float16 };
enum class CoordType { float64, float32 };

// Calls f with a number of the type.
template <class F>
static CRAD_ALWAYS_INLINE void with_value_type(ValueType type, F f) {
  switch (type) {
    case ValueType::float64:
      return f(double{});
    case ValueType::float32:
      return f(float{});
    case ValueType::bfloat16:
      return f(bfloat16{});
    case ValueType::float16:
      return f(float16{});
  }
}
template <class F>
static CRAD_ALWAYS_INLINE void with_coord_type(CoordType type, F f) {
  type == CoordType::float64 ? f(double{}) : f(float{});
}

// Calls f with a number of 1 to 4 as a constant, for the compiler to know what it bounds; whether
// it is such a number.
template <class F>
static CRAD_ALWAYS_INLINE bool with_small(int64_t number, F f) {
  switch (number) {
    case 1:
      return f(std::integral_constant<int, 1>()), true;
    case 2:
      return f(std::integral_constant<int, 2>()), true;
    case 3:
      return f(std::integral_constant<int, 3>()), true;
    case 4:
      return f(std::integral_constant<int, 4>()), true;
    default:
      return false;
  }
}

// The strides of the rows of a tensor (..., row) that is not contiguous, in elements.
struct RowStrides {
  static constexpr int kMostAxes = 63;  // of size 2 or more: no tensor has 2^63 rows
  int axes;                             // slowest first; axes that continue each other are merged
  int64_t size[kMostAxes], stride[kMostAxes];
  int64_t step;  // from an element of a row to the next
};

// Axes are in the order of `size`, slowest first; the components of a coordinate come in the
// reverse order. Points are those of all batch items, in row-major order.
struct Problem {
  ValueType value_type;
  CoordType coord_type;
  const void* values;  // (grids, *size, channels), with the strides below
  // The lanes of the CPU's vectors are points, and the values are floats, whatever the type.
  bool point_lanes;
  const void* coords;                // (grids * points_per_grid, ndim)
  const RowStrides* coords_strides;  // null: contiguous
  const int64_t* seed;               // null: no jitter
  const void* jitter_std;            // (ndim), of coord_type
  int ndim;
  int64_t size[kMaxDim];
  int64_t channels;
  // Of values, in elements.
  int64_t grid_stride, stride[kMaxDim], channel_stride;
  int64_t row;      // elements from an entry of their gradient to the next: the channels, or more
  int64_t entries;  // of one grid
  int64_t grids;    // 1 if all points share one
  int64_t points_per_grid;
  Mode mode;
  bool simplex;  // the corners are not the product of the taps: see simplex.h; the mode is linear
  Padding padding[kMaxDim];
  bool align_corners[kMaxDim];
  Unit unit;           // of coords and jitter_std
  int64_t derivative;  // see order_along
};

// Says that the channels of an entry follow each other, and the entries of a grid, `row` elements
// apart, as those of the gradient do.
inline void set_dense(Problem& problem, int64_t row) {
  problem.row = row;
  problem.channel_stride = 1;
  int64_t stride = row;
  for (int axis = problem.ndim - 1; axis >= 0; --axis) {
    problem.stride[axis] = stride;
    stride *= problem.size[axis];
  }
  problem.grid_stride = stride;
}

// Whether they do.
CRAD_INLINE bool is_dense(const Problem& problem) {
  int64_t stride = problem.row;
  bool dense = problem.channel_stride == 1;
  for (int axis = problem.ndim - 1; axis >= 0; --axis) {
    dense &= problem.stride[axis] == stride;
    stride *= problem.size[axis];
  }
  return dense;
}

// Whether the taps of a point read entries that follow each other along every axis, or lie outside.
CRAD_INLINE bool taps_follow_each_other(const Problem& problem) {
  bool follow = true;
  for (int axis = 0; axis < problem.ndim; ++axis)
    follow &= taps_follow_each_other(problem.mode, problem.padding[axis]);
  return follow;
}

// The points of all grids.
CRAD_INLINE int64_t points_of(const Problem& problem) {
  return problem.grids * problem.points_per_grid;
}

// The corners of a point: the product of its taps over the axes, or those of a simplex.
CRAD_INLINE int corners_of(const Problem& problem) {
  if (problem.simplex) return problem.ndim + 1;
  int corners = 1;
  for (int axis = 0; axis < problem.ndim; ++axis) corners *= tap_count(problem.mode);
  return corners;
}

// Bytes of a component of coords, and of a sum of values.
CRAD_INLINE constexpr int64_t bytes_of(CoordType type) {
  return type == CoordType::float64 ? 8 : 4;
}
CRAD_INLINE constexpr int64_t bytes_of_sum(ValueType type) {
  return type == ValueType::float64 ? 8 : 4;
}

// How often the weights along an axis are differentiated: 0 for a sample.
CRAD_INLINE int order_along(const Problem& problem, int axis) {
  return static_cast<int>(problem.derivative >> (4 * axis) & 15);
}

}  // namespace crad
