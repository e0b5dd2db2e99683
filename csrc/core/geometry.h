// What all points of a call share.
#pragma once

#include <cstdint>

#include "axis.h"

namespace crad {
namespace {

constexpr int kMaxDim = 8;

// Axes are in the order of `size`, slowest first; the components of a coordinate come in the
// reverse order.
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
  X jitter_std[kMaxDim];  // along an axis
};

}  // namespace
}  // namespace crad
