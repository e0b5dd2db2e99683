// The corners of vectors of points: their taps, weights and offsets, which stay in registers where
// all of them are in bounds.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "lanes.h"
#include "locate.h"

namespace crad {
namespace {

constexpr int power(int base, int exponent) {
  return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

// An axis of the values.
struct LaneAxis {
  int32_t size, stride;
  float last;  // of the first taps with which all are taken to lie inside
};

// The corners of a vector of points of which some lie outside, numbered as in `Corners`. (Functions
// that are called must not be given what is to stay in registers; all else is inlined.)
template <Mode mode, int ndim>
struct LanesAtEdge {
  static constexpr int taps = tap_count(mode), count = power(taps, ndim);

  IntLanes offset[count];
  uint32_t lanes[count];  // those whose entry lies inside, a bit each
  FloatLanes beginning;   // of sums: 0, or NaN where the index is no place

  __attribute__((noinline)) void locate(const Problem& problem, const FloatLanes (&base)[ndim],
                                        const FloatLanes (&first)[ndim]) {
    const Padding padding = problem.padding;
    beginning = FloatLanes{};
    for (int axis = 0; axis < ndim; ++axis) beginning += base[axis] - base[axis];
    IntLanes along[ndim][taps];
    uint32_t in_bounds[ndim][taps];
    for (int axis = 0; axis < ndim; ++axis) {
      const int32_t size = static_cast<int32_t>(problem.size[axis]);
      const bool follow = taps_follow_each_other(mode, padding);
      for (int tap = 0; tap < taps; ++tap) {
        const FloatLanes position =
            follow ? first[axis]
                   : tap_position(base[axis], tap, size, mode, padding, problem.align_corners);
        const IntLanes entry = entry_at(position, size, taps) + (follow ? tap : 0);
        in_bounds[axis][tap] = lanes_inside(entry, size);
        along[axis][tap] = kept_inside(entry, size) * static_cast<int32_t>(problem.stride[axis]);
      }
    }
    for (int k = 0; k < count; ++k) {
      offset[k] = IntLanes{};
      lanes[k] = kEveryLane;
      for (int axis = 0, left = k; axis < ndim; ++axis, left /= taps) {
        offset[k] += along[axis][left % taps];
        lanes[k] &= in_bounds[axis][left % taps];
      }
    }
  }

  __attribute__((noinline)) void read(const float* plane, FloatLanes (&entry)[count]) const {
    for (int k = 0; k < count; ++k) entry[k] = gathered(plane, offset[k], lanes[k]);
  }

  __attribute__((noinline)) void add(float* plane, const FloatLanes (&addend)[count],
                                     uint32_t points) const {
    for (int k = 0; k < count; ++k)
      for (uint32_t left = lanes[k] & points; left != 0; left &= left - 1) {
        const int i = __builtin_ctz(left);
        plane[offset[k][i]] += addend[k][i];
      }
  }
};

// What the weights of corners are made of.
template <Mode mode, int ndim>
struct LaneFractions {
  FloatLanes t[ndim], slope[ndim];

  CRAD_ALWAYS_INLINE void set(int axis, FloatLanes distance, FloatLanes index_slope) {
    t[axis] = distance;
    slope[axis] = index_slope;
  }
  CRAD_ALWAYS_INLINE FloatLanes weight(int axis, int order, int tap) const {
    return tap_weight(mode, order, tap, t[axis], slope[axis]);
  }
};

template <int ndim>
struct LaneFractions<Mode::nearest, ndim> {
  CRAD_ALWAYS_INLINE void set(int, FloatLanes, FloatLanes) {}
  CRAD_ALWAYS_INLINE FloatLanes weight(int, int order, int tap) const {
    return tap_weight(Mode::nearest, order, tap, FloatLanes{}, FloatLanes{});
  }
};

// The corners of any vector of points. A row of them differs along the last axis alone.
template <Mode mode, int ndim>
struct LaneCorners {
  static constexpr int taps = tap_count(mode), last = ndim - 1;
  static constexpr int count = power(taps, ndim), rows = count / taps;

  LaneFractions<mode, ndim> fractions;
  bool inside;     // all corners of all lanes
  IntLanes entry;  // if so, the offset of the first corner

  CRAD_ALWAYS_INLINE void locate(const Problem& problem, const LaneAxis (&axes)[ndim],
                                 Padding padding, bool align_corners,
                                 const FloatLanes (&coord)[ndim],
                                 LanesAtEdge<mode, ndim>& at_edge) {
    FloatLanes base[ndim], first[ndim];
    uint32_t lanes = kEveryLane;
    entry = IntLanes{};
#pragma GCC unroll 3
    for (int axis = 0; axis < ndim; ++axis) {
      const int32_t size = axes[axis].size;
      Index<FloatLanes> index = unpadded_index(coord[axis], size, align_corners);
      const float last_entry = static_cast<float>(size - 1);
      // No padding changes what is in bounds.
      if (padding != Padding::zeros && lanes_inside_of(index.at, 0, last_entry) != kEveryLane)
        index = padded(index, size, mode, padding, align_corners);
      base[axis] = base_of(index.at, mode);
      fractions.set(axis, index.at - base[axis], index.slope);
      first[axis] = mode == Mode::cubic ? base[axis] - 1.0f : base[axis];
      lanes &= lanes_between(first[axis], 0, axes[axis].last);
      entry += to_int(first[axis]) * axes[axis].stride;
    }
    inside = lanes == kEveryLane;
    if (inside) return;
    FloatLanes base_there[ndim], first_there[ndim];
    for (int axis = 0; axis < ndim; ++axis) {
      base_there[axis] = base[axis];
      first_there[axis] = first[axis];
    }
    at_edge.locate(problem, base_there, first_there);
  }

  // Their weights; along the axis `differentiated` (-1: none) differentiated once.
  CRAD_ALWAYS_INLINE void weigh(int differentiated, FloatLanes (&weight)[count]) const {
#pragma GCC unroll 3
    for (int axis = 0, before = 1; axis < ndim; ++axis, before *= taps)
#pragma GCC unroll 4
      for (int tap = taps - 1; tap >= 0; --tap) {
        const FloatLanes along = fractions.weight(axis, axis == differentiated, tap);
#pragma GCC unroll 16
        for (int k = 0; k < before; ++k)
          weight[tap * before + k] = axis == 0 ? along : weight[k] * along;
      }
  }

  // The entries of a plane at the corners, 0 where there is none.
  CRAD_ALWAYS_INLINE void read(const float* plane, const int64_t (&stride)[ndim],
                               const LanesAtEdge<mode, ndim>& at_edge,
                               FloatLanes (&result)[count]) const {
    if (!inside) {
      FloatLanes there[count];
      at_edge.read(plane, there);
      for (int k = 0; k < count; ++k) result[k] = there[k];
      return;
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const float* from = plane;
      for (int axis = 0, left = row; axis < last; ++axis, left /= taps)
        from += left % taps * stride[axis];
      FloatLanes tap[taps];
      if constexpr (taps == 1) {
        tap[0] = gathered(from, entry);
      } else if (stride[last] == 1) {
        if constexpr (taps == 2)
          gather_pairs(from, entry, tap);
        else
          gather_fours(from, entry, tap);
      } else {
        for (int i = 0; i < taps; ++i) tap[i] = gathered(from + i * stride[last], entry);
      }
      for (int i = 0; i < taps; ++i) result[row + i * rows] = tap[i];
    }
  }

  // Adds to the entries of a plane at the corners of the first `points` lanes.
  CRAD_ALWAYS_INLINE void add(float* plane, const int64_t (&stride)[ndim],
                              const LanesAtEdge<mode, ndim>& at_edge,
                              const FloatLanes (&addend)[count], int points) const {
    if (!inside) {
      FloatLanes there[count];
      for (int k = 0; k < count; ++k) there[k] = addend[k];
      return at_edge.add(plane, there, (uint32_t{1} << points) - 1);
    }
    int32_t at[kLanes];
    memcpy(at, &entry, sizeof(at));
    float terms[count][kLanes];
    for (int k = 0; k < count; ++k) store_lanes(terms[k], addend[k]);
    asm("" : "+m"(terms), "+m"(at));  // to be loaded from there
    const auto add_point = [&](int i) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int row = 0; row < rows; ++row) {
        float* to = plane + at[i];
        for (int axis = 0, left = row; axis < last; ++axis, left /= taps)
          to += left % taps * stride[axis];
        for (int tap = 0; tap < taps; ++tap) to[tap * stride[last]] += terms[row + tap * rows][i];
      }
    };
    if (points >= kLanes)
      for (int i = 0; i < kLanes; ++i) add_point(i);
    else
      for (int i = 0; i < points; ++i) add_point(i);
  }
};

// Whether the points of a range follow each other in memory, with no jitter.
inline bool is_plain(const Problem& problem, const Range& range) {
  return !problem.coords_strides && !problem.seed && !range.order;
}

constexpr int kVectors = kBatch / kLanes;

// A batch of points: all of its vectors are located before any is used, or else the processor would
// be full of what waits for the offsets of one.
template <Mode mode, int ndim>
struct LaneBatch {
  Batch<float> points;
  LaneCorners<mode, ndim> corners[kVectors];
  LanesAtEdge<mode, ndim> at_edge[kVectors];  // of those that are not inside
};

// A batch of points after the other, as vectors.
template <Mode mode, int ndim>
class LanePoints {
 public:
  int64_t stride[ndim];

  // `behind`: whether something may be read behind the entries of a vector that is inside.
  LanePoints(const Problem& problem, const Range& range, bool behind = false)
      : problem_(problem),
        range_(range),
        coords_(static_cast<const float*>(problem.coords)),
        end_(range.point_end),
        plain_(is_plain(problem, range)),
        align_corners_(problem.align_corners),
        padding_(problem.padding) {
    for (int axis = 0; axis < ndim; ++axis) {
      stride[axis] = problem.stride[axis];
      const int32_t size = static_cast<int32_t>(problem.size[axis]);
      const int32_t entries = axis == 0 && behind ? size - 1 : size;
      axes_[axis] = {size, static_cast<int32_t>(stride[axis]),
                     static_cast<float>(entries - tap_count(mode))};
    }
  }

  // Takes the batch from number `first` of the range on; returns how many points it has. Lanes
  // behind them repeat the last one.
  CRAD_ALWAYS_INLINE int take(int64_t first, Batch<float>& batch) {
    first_ = first;
    whole_ = plain_ && first + kBatch <= end_;
    return whole_ ? kBatch : fetch(problem_, range_, first, batch);
  }

  // Whether its points follow each other in memory; if not, the batch has their numbers.
  bool is_whole() const { return whole_; }

  // The coordinates of the vector of the batch that begins with lane `at`, along the axes.
  CRAD_ALWAYS_INLINE void coords(int at, const Batch<float>& batch,
                                 FloatLanes (&coord)[ndim]) const {
    if (whole_)
      load_coords<ndim>(coords_ + (first_ + at) * ndim, coord);
    else
      for (int axis = 0; axis < ndim; ++axis) coord[axis] = load_lanes(batch.coord[axis] + at);
  }

  // Locates the vectors of the batch that was taken.
  CRAD_ALWAYS_INLINE void locate(LaneBatch<mode, ndim>& batch) {
    for (int v = 0; v < kVectors; ++v) {
      FloatLanes coord[ndim];
      coords(v * kLanes, batch.points, coord);
      LaneCorners<mode, ndim> corners;
      corners.locate(problem_, axes_, padding_, align_corners_, coord, batch.at_edge[v]);
      batch.corners[v] = corners;
    }
  }

 private:
  const Problem& problem_;
  const Range& range_;
  const float* const coords_;
  const int64_t end_;
  const bool plain_, align_corners_;
  const Padding padding_;
  LaneAxis axes_[ndim];
  int64_t first_;
  bool whole_;
};

// Calls f with mode and dimensions as constants.
template <class F>
CRAD_INLINE void with_lanes(const Problem& problem, F f) {
  with_mode(problem.mode, [&](auto mode) {
    with_small(problem.ndim, [&](auto ndim) {
      if constexpr (ndim <= 3 && (mode != Mode::cubic || ndim <= 2)) f(mode, ndim);
    });
  });
}

}  // namespace
}  // namespace crad
