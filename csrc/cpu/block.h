// Sixteen points located together, one lane each: loops of a fixed length around csrc/core, which
// the compiler turns into vector code.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../core/geometry.h"
#include "../core/jitter.h"

namespace crad {
namespace {

constexpr int kLanes = 16;

template <class X>
struct Block {
  X coord[kMaxDim][kLanes];  // jittered, along the axes
  X t[kMaxDim][kLanes];      // distance of the index from the first tap
  X slope[kMaxDim][kLanes];  // of the index with respect to the coordinate
  int64_t first[kLanes];     // offset in the grid of the corner of all first taps
  uint64_t inside[kLanes];   // a bit per tap and axis, see tap_bit: the tap lies inside the grid
  uint32_t finite[kLanes];   // whether the index is finite, or its padding makes it so
};

// The product of the taps over the axes, the same for all points.
struct Corners {
  int count;
  int64_t step[kMaxCorners];    // offset from the first corner
  uint64_t needs[kMaxCorners];  // the taps that must lie inside the grid
};

CRAD_INLINE uint64_t tap_bit(int axis, int tap) { return uint64_t{1} << (axis * kMaxTaps + tap); }

template <class X>
inline Corners corners_of(const Geometry<X>& geometry) {
  Corners corners;
  corners.count = 1;
  corners.step[0] = 0;
  corners.needs[0] = 0;
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    const int taps = tap_count(geometry.mode), count = corners.count;
    for (int tap = taps - 1; tap >= 0; --tap)
      for (int k = 0; k < count; ++k) {
        corners.step[tap * count + k] = corners.step[k] + tap * geometry.stride[axis];
        corners.needs[tap * count + k] = corners.needs[k] | tap_bit(axis, tap);
      }
    corners.count *= taps;
  }
  return corners;
}

template <class X>
inline void add_jitter(const Geometry<X>& geometry, int64_t first_point, Block<X>& block) {
  for (int d = 0; d < geometry.ndim; d += 2) {
    float even[kLanes], odd[kLanes];
    const bool second_pair = d % 4 == 2;
    for (int i = 0; i < kLanes; ++i) {
      const Words words = jitter_words(geometry.seed, first_point + i, d / 4);
      normal_pair(second_pair ? words.word[2] : words.word[0],
                  second_pair ? words.word[3] : words.word[1], even[i], odd[i]);
    }
    const int axis = geometry.ndim - 1 - d;
    for (int i = 0; i < kLanes; ++i)
      block.coord[axis][i] += geometry.jitter_std[axis] * static_cast<X>(even[i]);
    if (axis == 0) break;
    for (int i = 0; i < kLanes; ++i)
      block.coord[axis - 1][i] += geometry.jitter_std[axis - 1] * static_cast<X>(odd[i]);
  }
}

template <Mode mode, Padding padding, class X>
inline void locate_along(const Geometry<X>& geometry, int axis, Block<X>& block) {
  const int64_t size = geometry.size[axis], stride = geometry.stride[axis];
  const bool align_corners = geometry.align_corners;
  constexpr int taps = tap_count(mode);
  X first[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const Index<X> raw = unpadded_index(block.coord[axis][i], size, align_corners);
    const Index<X> index = padded(raw, size, padding, align_corners);
    first[i] = first_tap(index.at, mode);
    block.t[axis][i] = index.at - first[i];
    block.slope[axis][i] = index.slope;
    // False for NaN and infinities alone.
    const bool finite =
        padding != Padding::zeros || std::fabs(raw.at) <= std::numeric_limits<X>::max();
    block.finite[i] &= finite ? 1u : 0u;
  }
  // Conditions are joined by & and not &&: a branch would keep the loop from being vectorised.
  X position[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    // Also keeps what is converted to an integer within its range.
    const bool near = (first[i] >= X(-taps)) & (first[i] <= static_cast<X>(size));
    position[i] = near ? first[i] : X(-taps);
  }
  for (int i = 0; i < kLanes; ++i) {
    const int64_t entry = static_cast<int64_t>(position[i]);
    uint64_t bits = 0;
    for (int tap = 0; tap < taps; ++tap)
      bits |= static_cast<uint64_t>((entry + tap >= 0) & (entry + tap < size))
              << (axis * kMaxTaps + tap);
    block.inside[i] |= bits;
    block.first[i] += entry * stride;
  }
}

// Calls f with the mode and the padding as compile-time constants.
template <class F>
inline void with_constants(Mode mode, Padding padding, F f) {
  auto with_mode = [&](auto constant_padding) {
    if (mode == Mode::nearest)
      f(std::integral_constant<Mode, Mode::nearest>{}, constant_padding);
    else
      f(std::integral_constant<Mode, Mode::linear>{}, constant_padding);
  };
  switch (padding) {
    case Padding::zeros:
      return with_mode(std::integral_constant<Padding, Padding::zeros>{});
    case Padding::border:
      return with_mode(std::integral_constant<Padding, Padding::border>{});
    case Padding::reflection:
      return with_mode(std::integral_constant<Padding, Padding::reflection>{});
  }
}

// Locates the points from `first` on, of which `remaining` are left, and returns how many of the
// lanes are points; the others repeat the last one. `coords` holds those of all points.
template <class X>
inline int locate(const Geometry<X>& geometry, const X* coords, int64_t first, int64_t remaining,
                  Block<X>& block) {
  const int points = remaining < kLanes ? static_cast<int>(remaining) : kLanes;
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    const X* component = coords + first * geometry.ndim + geometry.ndim - 1 - axis;
    for (int i = 0; i < kLanes; ++i)
      block.coord[axis][i] = component[(i < points ? i : points - 1) * geometry.ndim];
  }
  if (geometry.jittered) add_jitter(geometry, first, block);
  for (int i = 0; i < kLanes; ++i) {
    block.first[i] = 0;
    block.inside[i] = 0;
    block.finite[i] = 1;
  }
  with_constants(geometry.mode, geometry.padding, [&](auto mode, auto padding) {
    for (int axis = 0; axis < geometry.ndim; ++axis)
      locate_along<decltype(mode)::value, decltype(padding)::value>(geometry, axis, block);
  });
  return points;
}

// The weights of the corners of all points of a block, weight[corner][lane]; along the axis
// `differentiated` (-1: none) differentiated once more.
template <class X, class W>
inline void weigh(const Geometry<X>& geometry, const Block<X>& block, int differentiated,
                  W (*weight)[kLanes]) {
  int count = 1;
  for (int i = 0; i < kLanes; ++i) weight[0][i] = 1;
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    const int order = geometry.order[axis] + (axis == differentiated);
    const int taps = tap_count(geometry.mode);
    for (int tap = taps - 1; tap >= 0; --tap) {
      W along[kLanes];
      for (int i = 0; i < kLanes; ++i)
        along[i] = static_cast<W>(
            tap_weight(geometry.mode, order, tap, block.t[axis][i], block.slope[axis][i]));
      for (int k = 0; k < count; ++k)
        for (int i = 0; i < kLanes; ++i) weight[tap * count + k][i] = weight[k][i] * along[i];
    }
    count *= taps;
  }
}

// Gathers the corners of a point that lie inside the grid: which they are, their offsets in the
// grid and their weights. Returns how many there are.
template <class X, class W>
inline int corners_inside(const Corners& corners, const Block<X>& block, int lane,
                          const W (*block_weight)[kLanes], int* corner, int64_t* offset,
                          W* weight) {
  int count = 0;
  const uint64_t outside = ~block.inside[lane];
  for (int k = 0; k < corners.count; ++k) {
    corner[count] = k;
    offset[count] = block.first[lane] + corners.step[k];
    weight[count] = block_weight[k][lane];
    count += (corners.needs[k] & outside) == 0;
  }
  return count;
}

}  // namespace
}  // namespace crad
