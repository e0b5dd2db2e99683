// One point of a sample: its taps along every axis, and their product over the axes.
#pragma once

#include <cstdint>

#include "axis.h"
#include "jitter.h"
#include "macros.h"

namespace crad {
namespace {

constexpr int kMaxDim = 8;
constexpr int kMaxCorners = 1 << kMaxDim;

// What all points of a call share. Axes are in the order of `size`, slowest first; coordinates have
// theirs reversed.
template <class X>
struct Geometry {
  int ndim;
  int64_t size[kMaxDim];
  int64_t stride[kMaxDim];  // of an axis of the grid, in elements
  Mode mode;
  Padding padding;
  bool align_corners;
  int order[kMaxDim];  // of the derivative with respect to the coordinate along an axis
  bool jittered;
  uint64_t seed;
  X jitter_std[kMaxDim];  // in coords order
};

// What one point needs of the grid.
template <class X>
struct Point {
  bool finite;  // if not, the sample is NaN
  Taps<X> axis[kMaxDim];
  Taps<X> slope[kMaxDim];  // the taps with the order along that axis raised by one
};

template <class X>
CRAD_INLINE void jittered(const Geometry<X>& geometry, uint64_t point, const X* coord, X* moved) {
  for (int d = 0; d < geometry.ndim; ++d) moved[d] = coord[d];
  if (!geometry.jittered) return;
  for (int block = 0; block * 4 < geometry.ndim; ++block) {
    float normal[4];
    jitter_normals(geometry.seed, point, block, normal);
    for (int d = block * 4; d < geometry.ndim && d < block * 4 + 4; ++d)
      moved[d] += geometry.jitter_std[d] * static_cast<X>(normal[d - block * 4]);
  }
}

// `point` counts over batch and points; `with_slope` fills Point::slope too.
template <class X>
CRAD_INLINE void locate(const Geometry<X>& geometry, uint64_t point, const X* coord,
                        bool with_slope, Point<X>& result) {
  X moved[kMaxDim];
  jittered(geometry, point, coord, moved);
  result.finite = true;
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    const int64_t size = geometry.size[axis];
    Index<X> index =
        unpadded_index(moved[geometry.ndim - 1 - axis], size, geometry.align_corners);
    if (geometry.padding == Padding::zeros && !std::isfinite(index.at)) {
      result.finite = false;
      return;
    }
    index = padded(index, size, geometry.padding, geometry.align_corners);
    const int order = geometry.order[axis];
    result.axis[axis] = taps_at(index, size, geometry.mode, order);
    if (with_slope) result.slope[axis] = taps_at(index, size, geometry.mode, order + 1);
  }
}

// The corners of the product of the taps over the axes: how many there are, and their offsets in
// the grid in elements.
template <class X>
CRAD_INLINE int corner_offsets(const Geometry<X>& geometry, const Point<X>& point,
                               int64_t* offset) {
  int count = 1;
  offset[0] = 0;
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    const Taps<X>& taps = point.axis[axis];
    for (int tap = taps.count - 1; tap >= 0; --tap)
      for (int corner = 0; corner < count; ++corner)
        offset[tap * count + corner] = offset[corner] + taps.entry[tap] * geometry.stride[axis];
    count *= taps.count;
  }
  return count;
}

// The weights of those corners, in the same order; along axis `differentiated` (-1: none) with the
// slopes for weights.
template <class X, class W>
CRAD_INLINE void corner_weights(const Geometry<X>& geometry, const Point<X>& point,
                                int differentiated, W* weight) {
  int count = 1;
  weight[0] = 1;
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    const Taps<X>& taps = axis == differentiated ? point.slope[axis] : point.axis[axis];
    for (int tap = taps.count - 1; tap >= 0; --tap)
      for (int corner = 0; corner < count; ++corner)
        weight[tap * count + corner] = weight[corner] * static_cast<W>(taps.weight[tap]);
    count *= taps.count;
  }
}

}  // namespace
}  // namespace crad
