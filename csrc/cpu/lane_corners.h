// The corners of vectors of points: their taps, weights and offsets, which stay in registers where
// all of them are in bounds.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "lanes.h"
#include "locate.h"

namespace crad {
namespace {

constexpr int power(int base, int exponent) {
  return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

// Adds a point's gradient, times a weight, to an entry's channels, `fours` times four.
template <int fours>
CRAD_INLINE void add_row(float* to, const float* grad, float weight) {
#if CRAD_VECTOR_BYTES > 16
  if constexpr (fours == 2) {
    const __m256 addend = _mm256_mul_ps(_mm256_loadu_ps(grad), _mm256_set1_ps(weight));
    return _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), addend));
  }
#endif
  for (int j = 0; j < 4 * fours; j += 4)
    store_four(to + j, load_four(to + j) + load_four(grad + j) * weight);
}

// An axis of the values.
struct LaneAxis {
  int32_t size, stride;
  int32_t begin, end;   // the entries that are taken to lie inside
  int32_t first, last;  // of the first taps with which all lie so
  Placement<float> placement;
  float low, high;  // between which no padding changes the index
  Padding padding;
  bool align_corners;
};

// What it takes to locate points. (Copied to where they are located, so that compilers know it to
// stay as it is.)
template <int ndim>
struct LaneAxes {
  LaneAxis along[ndim];
  bool can_be_inside;
  bool pads;              // anything but zeros, along some axis
  bool borders, centres;  // whether -1 and 1 are these along every axis: most calls have constants

  CRAD_ALWAYS_INLINE Index<FloatLanes> index_of(int axis, FloatLanes coord) const {
    const Placement<float>& placement = along[axis].placement;
    if (borders) return unpadded_index(coord, Placement<float>{1, placement.scale, 1, 0.5f});
    if (centres) return unpadded_index(coord, Placement<float>{1, 0.5f, 0, placement.factor});
    return unpadded_index(coord, placement);
  }
};

// The corners of a vector of points of which some lie outside, numbered as in `Corners`. (Functions
// that are called must not be given what is to stay in registers; all else is inlined.)
template <Mode mode, int ndim>
struct LanesAtEdge {
  static constexpr int taps = tap_count(mode), count = power(taps, ndim);

  IntLanes offset[count];
  uint32_t lanes[count];  // those whose entry lies inside, a bit each
  FloatLanes beginning;   // of sums: 0, or NaN where the index is no place

  CRAD_ALWAYS_INLINE void set(const LaneAxes<ndim>& axes, const FloatLanes (&base)[ndim],
                              const FloatLanes (&first)[ndim]) {
    beginning = FloatLanes{};
    for (int axis = 0; axis < ndim; ++axis) beginning += base[axis] - base[axis];
    IntLanes along[ndim][taps];
    uint32_t in_bounds[ndim][taps];
    for (int axis = 0; axis < ndim; ++axis) {
      const LaneAxis along_axis = axes.along[axis];
      const int32_t size = along_axis.size;
      const Padding padding = along_axis.padding;
      const bool follow = taps_follow_each_other(mode, padding);
      for (int tap = 0; tap < taps; ++tap) {
        const FloatLanes position =
            follow ? first[axis]
                   : tap_position(base[axis], tap, size, mode, padding, along_axis.align_corners);
        const IntLanes entry = entry_at(position, size, taps) + (follow ? tap : 0);
        in_bounds[axis][tap] = bits_of(within(entry, along_axis.begin, along_axis.end - 1));
        along[axis][tap] = kept_inside(entry, size) * along_axis.stride;
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
    for (int k = 0; k < count; ++k) entry[k] = only(gathered(plane, offset[k]), lanes[k]);
  }

  // Four channels that follow each other, of one corner.
  __attribute__((noinline)) void read_four(int k, const float* grid, FloatLanes (&four)[4]) const {
    gather(grid, offset[k], four);
    for (FloatLanes& channel : four) channel = only(channel, lanes[k]);
  }

  // Adds to rows of channels, as LaneCorners::add_rows.
  template <int fours>
  __attribute__((noinline)) void add_rows(float* grid, const FloatLanes (&weight)[count],
                                          const float* const* grad, uint32_t points) const {
    for (int i = 0; points >> i != 0; ++i)
      for (int k = 0; k < count; ++k)
        if (lanes[k] >> i & 1) add_row<fours>(grid + offset[k][i], grad[i], weight[k][i]);
  }

  // Point by point, as where all lie inside.
  __attribute__((noinline)) void add(float* plane, const FloatLanes (&addend)[count],
                                     uint32_t points) const {
    uint32_t some = 0;
    for (int k = 0; k < count; ++k) some |= lanes[k] & points;
    for (; some != 0; some &= some - 1) {
      const int i = __builtin_ctz(some);
      for (int k = 0; k < count; ++k)
        if (lanes[k] >> i & 1) plane[offset[k][i]] += addend[k][i];
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

  // Where all corners of all points lie inside; if not, says so.
  CRAD_ALWAYS_INLINE void locate(const LaneAxes<ndim>& axes, const FloatLanes (&coord)[ndim]) {
    LaneMask lanes;
    entry = IntLanes{};
#pragma GCC unroll 3
    for (int axis = 0; axis < ndim; ++axis) {
      const LaneAxis along = axes.along[axis];
      const Index<FloatLanes> index = axes.index_of(axis, coord[axis]);
      const FloatLanes position = set(axis, index);
      const IntLanes first = mode == Mode::nearest ? rounded_to_int(index.at) : to_int(position);
      const LaneMask these = within(first, along.first, along.last);
      lanes = axis == 0 ? these : lanes & these;
      // No padding changes what is in bounds.
      if (axes.pads) lanes &= between(index.at, along.low, along.high);
      entry += first * along.stride;
    }
    inside = every(lanes) & axes.can_be_inside;
  }

  // Where some may lie outside.
  __attribute__((noinline)) void locate_at_edge(const LaneAxes<ndim>& axes,
                                                const FloatLanes (&coord)[ndim],
                                                LanesAtEdge<mode, ndim>& at_edge) {
    FloatLanes base[ndim], first[ndim];
    for (int axis = 0; axis < ndim; ++axis) {
      const LaneAxis along = axes.along[axis];
      const Index<FloatLanes> index = unpadded_index(coord[axis], along.placement);
      const Index<FloatLanes> near =
          padded(index, along.size, mode, along.padding, along.align_corners);
      base[axis] = wrapped_base(base_of(near.at, mode), along.size, along.padding);
      first[axis] = set(axis, near);
    }
    at_edge.set(axes, base, first);
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
      const float* const from = plane + step(row, stride);
      FloatLanes tap[taps];
      if (taps == 1 || stride[last] == 1)
        gather(from, entry, tap);
      else
        for (int i = 0; i < taps; ++i) tap[i] = gathered(from + i * stride[last], entry);
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
        float* const to = plane + at[i] + step(row, stride);
        for (int tap = 0; tap < taps; ++tap) to[tap * stride[last]] += terms[row + tap * rows][i];
      }
    };
    if (points >= kLanes)
      for (int i = 0; i < kLanes; ++i) add_point(i);
    else
      for (int i = 0; i < points; ++i) add_point(i);
  }

  // Four channels that follow each other, of corner k.
  CRAD_ALWAYS_INLINE void read_four(int k, const float* grid, const int64_t (&stride)[ndim],
                                    const LanesAtEdge<mode, ndim>& at_edge,
                                    FloatLanes (&four)[4]) const {
    if (inside) return gather(grid + step(k, stride), entry, four);
    FloatLanes there[4];
    at_edge.read_four(k, grid, there);
    for (int j = 0; j < 4; ++j) four[j] = there[j];
  }

  // Adds to the rows of channels at the corners of the first `points` lanes their gradients, times
  // the weights.
  template <int fours>
  CRAD_ALWAYS_INLINE void add_rows(float* grid, const int64_t (&stride)[ndim],
                                   const LanesAtEdge<mode, ndim>& at_edge,
                                   const FloatLanes (&weight)[count], const float* const* grad,
                                   int points) const {
    if (!inside) {
      FloatLanes there[count];
      for (int k = 0; k < count; ++k) there[k] = weight[k];
      return at_edge.template add_rows<fours>(grid, there, grad, (uint32_t{1} << points) - 1);
    }
    int32_t at[kLanes];
    memcpy(at, &entry, sizeof(at));
    float weights[count][kLanes];
    for (int k = 0; k < count; ++k) store_lanes(weights[k], weight[k]);
    asm("" : "+m"(weights), "+m"(at));  // to be loaded from there
    for (int i = 0; i < points; ++i)
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k)
        add_row<fours>(grid + at[i] + step(k, stride), grad[i], weights[k][i]);
  }

 private:
  // From the offset of the first corner to that of corner k.
  CRAD_ALWAYS_INLINE static int64_t step(int k, const int64_t (&stride)[ndim]) {
    int64_t step = 0;
    for (int axis = 0, left = k; axis < ndim; ++axis, left /= taps)
      step += left % taps * stride[axis];
    return step;
  }

  // Sets what the weights along an axis are made of; returns the positions of the first taps.
  CRAD_ALWAYS_INLINE FloatLanes set(int axis, Index<FloatLanes> index) {
    const FloatLanes base = base_of(index.at, mode);
    fractions.set(axis, index.at - base, index.slope);
    return mode == Mode::cubic ? base - 1.0f : base;
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
        plain_(is_plain(problem, range)) {
    axes_.can_be_inside = true;
    axes_.pads = false;
    axes_.borders = axes_.centres = problem.unit == Unit::normalized;
    for (int axis = 0; axis < ndim; ++axis) {
      stride[axis] = problem.stride[axis];
      const int32_t size = static_cast<int32_t>(problem.size[axis]);
      const int32_t last = (axis == 0 && behind ? size - 1 : size) - tap_count(mode);
      const Padding padding = problem.padding[axis];
      const bool align_corners = problem.align_corners[axis], zeros = padding == Padding::zeros;
      const float first_index = zeros ? -INFINITY : 0;
      const float last_index = zeros ? INFINITY : static_cast<float>(size - 1);
      axes_.along[axis] = {size,
                           static_cast<int32_t>(stride[axis]),
                           0,
                           size,
                           0,
                           last,
                           placement_of<float>(size, align_corners, problem.unit),
                           first_index,
                           last_index,
                           padding,
                           align_corners};
      axes_.pads |= !zeros;
      axes_.borders &= !align_corners;
      axes_.centres &= align_corners;
      axes_.can_be_inside &= last >= 0;
    }
  }

  // All but some entries along the first axis are taken to lie outside.
  void keep_rows(int64_t first, int64_t end) {
    LaneAxis& rows = axes_.along[0];
    rows.begin = static_cast<int32_t>(first);
    rows.end = static_cast<int32_t>(std::min<int64_t>(end, rows.size));
    rows.first = rows.begin;
    rows.last = rows.end - tap_count(mode);
    axes_.can_be_inside &= rows.last >= rows.first;
  }

  LaneAxes<ndim> axes() const { return axes_; }

  // Takes the batch from number `first` of the range on; returns how many points it has. Lanes
  // behind them repeat the last one.
  CRAD_ALWAYS_INLINE int take(int64_t first, Batch<float>& batch) {
    first_ = first;
    follow_ = !range_.order && first + kBatch <= end_;
    whole_ = plain_ && follow_;
    return whole_ ? kBatch : fetch(first, batch);
  }

  // Whether it has as many points as any, whose numbers follow each other; if not, the batch has
  // their numbers.
  bool is_whole() const { return follow_; }

  // The coordinates of the vector of the batch that begins with lane `at`, along the axes.
  CRAD_ALWAYS_INLINE void coords(int at, const Batch<float>& batch,
                                 FloatLanes (&coord)[ndim]) const {
    if (whole_)
      load_coords<ndim>(coords_ + (first_ + at) * ndim, coord);
    else
      for (int axis = 0; axis < ndim; ++axis) coord[axis] = load_lanes(batch.coord[axis] + at);
  }

  // Locates the vectors of the batch that was taken.
  CRAD_ALWAYS_INLINE void locate(const LaneAxes<ndim>& axes, LaneBatch<mode, ndim>& batch) const {
    bool inside = true;
    for (int v = 0; v < kVectors; ++v) {
      FloatLanes coord[ndim];
      coords(v * kLanes, batch.points, coord);
      LaneCorners<mode, ndim> corners;
      corners.locate(axes, coord);
      batch.corners[v] = corners;
      inside &= corners.inside;
    }
    if (!inside) locate_at_edge(batch);
  }

 private:
  // (Called, since it is seldom that points are not whole.)
  __attribute__((noinline)) int fetch(int64_t first, Batch<float>& batch) const {
    return crad::fetch(problem_, range_, first, batch);
  }

  __attribute__((noinline)) void locate_at_edge(LaneBatch<mode, ndim>& batch) const {
    for (int v = 0; v < kVectors; ++v) {
      if (batch.corners[v].inside) continue;
      FloatLanes coord[ndim];
      coords(v * kLanes, batch.points, coord);
      batch.corners[v].locate_at_edge(axes_, coord, batch.at_edge[v]);
    }
  }

  const Problem& problem_;
  const Range& range_;
  const float* const coords_;
  const int64_t end_;
  const bool plain_;
  LaneAxes<ndim> axes_;
  int64_t first_;
  bool follow_;  // as `is_whole` says
  bool whole_;   // and their coordinates lie so, too
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
