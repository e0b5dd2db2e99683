// What all points of a call share, as the loops over a block of them want it.
#pragma once

#include <cstdint>
#include <limits>

#include "../core/problem.h"

namespace crad {
namespace {

// Axes are in the order of `size`, slowest first; the components of a coordinate come in the
// reverse order.
template <class X>
struct Geometry {
  int ndim;
  int64_t size[kMaxDim];
  int64_t stride[kMaxDim];           // of an axis of the grid, in elements
  const RowStrides* coords_strides;  // null: contiguous
  bool small;                        // entries and their offsets fit an int32_t
  Mode mode;
  Padding padding;
  bool align_corners;
  int order[kMaxDim];  // of the derivative with respect to the coordinate along an axis
  bool jittered;
  uint64_t seed;
  X jitter_std[kMaxDim];  // along an axis
};

template <class X>
Geometry<X> geometry_of(const Problem& problem) {
  Geometry<X> geometry{};
  geometry.ndim = problem.ndim;
  geometry.small = true;
  geometry.coords_strides = problem.coords_strides;
  for (int axis = problem.ndim - 1; axis >= 0; --axis) {
    geometry.size[axis] = problem.size[axis];
    geometry.stride[axis] = problem.stride[axis];
    geometry.order[axis] = order_along(problem, axis);
    // A tap may lie outside, by no more than the number of taps.
    geometry.small &=
        problem.size[axis] <= kExactSize && (problem.size[axis] + kMaxTaps) * problem.stride[axis] <
                                                std::numeric_limits<int32_t>::max();
  }
  geometry.mode = problem.mode;
  geometry.padding = problem.padding;
  geometry.align_corners = problem.align_corners;
  geometry.jittered = problem.seed != nullptr;
  if (geometry.jittered) {
    geometry.seed = static_cast<uint64_t>(*problem.seed);
    for (int d = 0; d < problem.ndim; ++d)
      geometry.jitter_std[problem.ndim - 1 - d] = static_cast<const X*>(problem.jitter_std)[d];
  }
  return geometry;
}

}  // namespace
}  // namespace crad
