// What the kernels of the backward pass share.
#pragma once

#include "vector.h"

namespace crad {

// Where the blocks of a backward pass put their results; null: not wanted. Of planes the values lie
// otherwise, and every lane has a part of the coordinates: see backward_planes().
template <class A>
struct Gradients {
  A* values;  // (chunks, grids * entries, channels): summed over the chunks afterwards
  A* coords;  // (tiles, points, ndim): summed over the tiles afterwards
};

// Doubles, and 8 channels of a thread, take more registers than two blocks have.
template <class A, int V>
constexpr int kBlocksFor = sizeof(A) > 4 || V > 4 ? 1 : kBlocks;

// The slopes of a point: the sum over the corners of their weights' derivatives times the product
// of the gradient of the output with their entry.
template <class A, int kLow, int kHigh>
struct Slopes {
  A low[kLow] = {};  // along the components of the low table, times the weight of the high one
  A along = 0;       // the low table's own sum, for the components of the high one

  template <class C>
  CRAD_DEVICE void add(const C& corner, A product) {
    along = multiply_add(corner.weight, product, along);
    CRAD_UNROLL
    for (int d = 0; d < kLow; ++d) low[d] = multiply_add(corner.slope[d], product, low[d]);
  }

  // Adds them, complete for one corner of the high table, to those of the point.
  template <class C>
  CRAD_DEVICE void add_to(A* slope, const C& high) const {
    CRAD_UNROLL
    for (int d = 0; d < kLow; ++d) slope[d] = multiply_add(high.weight, low[d], slope[d]);
    CRAD_UNROLL
    for (int d = 0; d < kHigh; ++d)
      slope[kLow + d] = multiply_add(high.slope[d], along, slope[kLow + d]);
  }
};

}  // namespace crad
