// The loops for images and volumes of few channels, and for few points of any: the lanes of a
// vector are points, and what is known of them stays in registers.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "lanes.h"
#include "point_rows.h"

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

// ---- forward, of rows of channels ----

// The sums of the vector of points that was located last, one by one: all channels of a point at
// once, `fours` times four. They may be read, and written, behind the last channel.
template <int fours, Mode mode, int ndim>
CRAD_INLINE void blend_rows(const float* grid, int64_t channels,
                            const LaneCorners<mode, ndim>& corners, const int64_t (&stride)[ndim],
                            const LanesAtEdge<mode, ndim>& at_edge, float* to) {
  constexpr int taps = tap_count(mode), count = power(taps, ndim);
  FloatLanes weight[count];
  corners.weigh(-1, weight);
  float weights[count][kLanes], beginning[kLanes];
  for (int k = 0; k < count; ++k) store_lanes(weights[k], weight[k]);
  const auto finish = [&](int i, const FourLanes(&total)[fours]) __attribute__((always_inline)) {
    memcpy(to + i * channels, total, sizeof(total));
  };
  if (corners.inside) {
    int32_t entry[kLanes];
    memcpy(entry, &corners.entry, sizeof(entry));
    // To be loaded from there: GCC would take them out of the vectors, by more instructions.
    asm("" : "+m"(weights), "+m"(entry));
    for (int i = 0; i < kLanes; ++i) {
      FourLanes total[fours] = {};
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) {
        const float* from = grid + entry[i];
        for (int axis = 0, left = k; axis < ndim; ++axis, left /= taps)
          from += left % taps * stride[axis];
        FourLanes row[fours];
        memcpy(row, from, sizeof(row));
        for (int j = 0; j < fours; ++j) total[j] = multiply_add(row[j], weights[k][i], total[j]);
      }
      finish(i, total);
    }
    return;
  }
  store_lanes(beginning, at_edge.beginning);
  int32_t offset[count][kLanes];
  memcpy(offset, at_edge.offset, sizeof(offset));
  for (int i = 0; i < kLanes; ++i) {
    FourLanes total[fours];
    for (int j = 0; j < fours; ++j) total[j] = FourLanes{} + beginning[i];
    for (int k = 0; k < count; ++k) {
      const int wanted = at_edge.lanes[k] >> i & 1 ? static_cast<int>(channels) : 0;
      const float* const from = grid + offset[k][i];
      for (int j = 0; j < fours; ++j)
        total[j] = multiply_add(load_four(from + 4 * j, wanted - 4 * j), weights[k][i], total[j]);
    }
    finish(i, total);
  }
}

template <int fours, Mode mode, int ndim>
void forward_rows(const Problem& problem, const Range& range, const Output& output) {
  const float* const grid = grid_of<float>(problem, range);
  const int64_t channels = problem.channels;
  float* const data =
      static_cast<float*>(output.data) - output.first_channel - output.first_point * output.row;
  LanePoints<mode, ndim> lanes(problem, range, true);
  LaneBatch<mode, ndim> batch;
  float rows[kBatch * kMostPlanes + kMostPlanes];
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = lanes.take(p, batch.points);
    lanes.locate(batch);
    for (int v = 0; v < kVectors; ++v)
      blend_rows<fours>(grid, channels, batch.corners[v], lanes.stride, batch.at_edge[v],
                        rows + v * kLanes * channels);
    if (!range.order && output.row == channels)
      memcpy(data + p * channels, rows, points * channels * sizeof(float));
    else
      for (int i = 0; i < points; ++i)
        memcpy(data + (range.order ? batch.points.point[i] : p + i) * output.row,
               rows + i * channels, channels * sizeof(float));
  }
}

// ---- forward, of planes ----

// Where the results of a vector of points belong.
class LaneOutput {
 public:
  LaneOutput(const Problem& problem, const Range& range, const Output& output)
      : ordered_(range.order),
        point_step_(output.planes ? 1 : output.row),
        channel_step_(output.planes ? problem.points_per_grid : 1) {
    // Of planes, the results of other grids' channels lie before those of the range's points.
    const int64_t grid = range.point_begin / problem.points_per_grid;
    const int64_t before = output.planes ? (problem.channels - 1) * grid * problem.points_per_grid
                                         : -output.first_point * output.row - output.first_channel;
    data_ = static_cast<float*>(output.data) + before;
  }

  // Where those of channel 0 of whole vectors are stored, from number `first` of the range on; null
  // if they are not stored as vectors. Those of the next channel lie `channel_step` from there.
  float* whole(int64_t first) const {
    return point_step_ == 1 && !ordered_ ? data_ + first : nullptr;
  }
  int64_t channel_step() const { return channel_step_; }

  // Stores those of a channel of the vector whose first point is number `first` of the range; the
  // points' own numbers are `number`.
  CRAD_ALWAYS_INLINE void store(int64_t channel, int64_t first, const int64_t* number, int points,
                                FloatLanes result) const {
    float* const to = data_ + channel * channel_step_;
    if (point_step_ == 1 && !ordered_ && points >= kLanes) return store_lanes(to + first, result);
    float lane[kLanes];
    store_lanes(lane, result);
    for (int i = 0; i < std::min(points, kLanes); ++i)
      to[(ordered_ ? number[i] : first + i) * point_step_] = lane[i];
  }

 private:
  float* data_;
  const bool ordered_;
  const int64_t point_step_, channel_step_;
};

template <Mode mode, int ndim>
CRAD_INLINE FloatLanes blend_plane(const float* plane, const LaneCorners<mode, ndim>& corners,
                                   const int64_t (&stride)[ndim],
                                   const LanesAtEdge<mode, ndim>& at_edge,
                                   const FloatLanes (&weight)[power(tap_count(mode), ndim)]) {
  constexpr int count = power(tap_count(mode), ndim);
  FloatLanes entry[count], total = corners.inside ? FloatLanes{} : FloatLanes(at_edge.beginning);
  corners.read(plane, stride, at_edge, entry);
#pragma GCC unroll 16
  for (int k = 0; k < count; ++k) total = multiply_add(entry[k], weight[k], total);
  return total;
}

// Of few channels.
template <Mode mode, int ndim>
void forward_planes(const Problem& problem, const Range& range, const Output& output) {
  const float* const grid = grid_of<float>(problem, range);
  const int64_t channels = problem.channels, channel_stride = problem.channel_stride;
  const LaneOutput to(problem, range, output);
  const int64_t channel_step = to.channel_step();
  LanePoints<mode, ndim> lanes(problem, range);
  int64_t stride[ndim];
  for (int axis = 0; axis < ndim; ++axis) stride[axis] = lanes.stride[axis];
  LaneBatch<mode, ndim> batch;
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = lanes.take(p, batch.points);
    lanes.locate(batch);
    float* const whole = points == kBatch ? to.whole(p) : nullptr;
    for (int v = 0; v < kVectors; ++v) {
      const LaneCorners<mode, ndim> corners = batch.corners[v];
      FloatLanes weight[corners.count];
      corners.weigh(-1, weight);
      const float* plane = grid;
      if (whole) {
        float* result = whole + v * kLanes;
        for (int64_t c = 0; c < channels; ++c, plane += channel_stride, result += channel_step)
          store_lanes(result, blend_plane(plane, corners, stride, batch.at_edge[v], weight));
        continue;
      }
      const int at = v * kLanes;
      for (int64_t c = 0; c < channels; ++c, plane += channel_stride)
        to.store(c, p + at, batch.points.point + at, points - at,
                 blend_plane(plane, corners, stride, batch.at_edge[v], weight));
    }
  }
}

// Of many, one plane after the other: all points together have little else in the caches.
template <Mode mode, int ndim>
void forward_plane_by_plane(const Problem& problem, const Range& range, const Output& output) {
  constexpr int64_t kBatches = 16;
  const float* const grid = grid_of<float>(problem, range);
  const LaneOutput to(problem, range, output);
  LanePoints<mode, ndim> lanes(problem, range);
  Buffer<LaneBatch<mode, ndim>> batches(kBatches);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatches * kBatch) {
    const int64_t points = std::min(range.point_end - p, kBatches * kBatch);
    for (int64_t at = 0; at < points; at += kBatch) {
      lanes.take(p + at, batches[at / kBatch].points);
      lanes.locate(batches[at / kBatch]);
    }
    for (int64_t c = 0; c < problem.channels; ++c)
      for (int64_t at = 0; at < points; at += kLanes) {
        const LaneBatch<mode, ndim>& batch = batches[at / kBatch];
        const int v = at % kBatch / kLanes;
        const LaneCorners<mode, ndim> corners = batch.corners[v];
        FloatLanes weight[corners.count];
        corners.weigh(-1, weight);
        to.store(c, p + at, batch.points.point + v * kLanes, static_cast<int>(points - at),
                 blend_plane(grid + c * problem.channel_stride, corners, lanes.stride,
                             batch.at_edge[v], weight));
      }
  }
}

// ---- backward ----

// The gradient of the output, where the points of a batch read it: `row(c)` has that of channel c.
class LaneGradients {
 public:
  LaneGradients(const Problem& problem, const Gradients& gradients)
      : strides_(gradients.grad_output_strides),
        channels_(problem.channels),
        step_(strides_ ? strides_->step : 1),
        first_(static_cast<const float*>(gradients.grad_output)),
        packed_(problem.channels) {}

  void fetch(const int64_t (&point)[kBatch], bool points_follow) {
    int64_t offset[kBatch];
    if (strides_)
      offsets_of(*strides_, point, offset);
    else
      for (int i = 0; i < kBatch; ++i) offset[i] = point[i] * channels_;
    int64_t apart = 0;
    for (int i = 0; i < kBatch; ++i) apart |= offset[i] - offset[0] - i;
    if (apart == 0) {
      row_ = first_ + offset[0];
      row_step_ = step_;
      return;
    }
    row_ = packed_[0].at;
    row_step_ = kBatch;
    if (!strides_ && points_follow)
      return transpose_elements(first_ + offset[0], channels_, kBatch, channels_, packed_[0].at,
                                int64_t{kBatch});
    for (int64_t c = 0; c < channels_; ++c)
      for (int i = 0; i < kBatch; ++i) packed_[c][i] = first_[offset[i] + c * step_];
  }

  const float* row(int64_t channel) const { return row_ + channel * row_step_; }

 private:
  const RowStrides* const strides_;  // null: contiguous
  const int64_t channels_, step_;
  const float* const first_;
  Buffer<PerPoint<float>> packed_;
  const float* row_;
  int64_t row_step_;
};

template <bool Values, bool Coords, Mode mode, int ndim>
void backward_image(const Problem& problem, const Range& range, const Gradients& gradients) {
  constexpr int count = LaneCorners<mode, ndim>::count;
  const float* const grid = grid_of<float>(problem, range);
  float* const grad_values = static_cast<float*>(gradients.grad_values);
  float* const grad_coords = static_cast<float*>(gradients.grad_coords);
  const int64_t channels = problem.channels, channel_stride = problem.channel_stride;
  LanePoints<mode, ndim> lanes(problem, range);
  LaneBatch<mode, ndim> batch;
  LaneGradients grads(problem, gradients);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = lanes.take(p, batch.points);
    if (lanes.is_whole())
      for (int i = 0; i < kBatch; ++i) batch.points.point[i] = p + i;
    grads.fetch(batch.points.point, lanes.is_whole());
    lanes.locate(batch);
    for (int at = 0; at < points; at += kLanes) {
      const LaneCorners<mode, ndim> corners = batch.corners[at / kLanes];
      const LanesAtEdge<mode, ndim>& at_edge = batch.at_edge[at / kLanes];
      FloatLanes weight[count], dot[count];
      corners.weigh(-1, weight);
      const FloatLanes beginning = corners.inside ? FloatLanes{} : FloatLanes(at_edge.beginning);
      for (int k = 0; k < count; ++k) dot[k] = beginning;
      for (int64_t c = 0; c < channels; ++c) {
        const FloatLanes grad = load_lanes(grads.row(c) + at);
        FloatLanes factor[count];
        if (Coords && mode != Mode::nearest) {  // which stays where it is
          corners.read(grid + c * channel_stride, lanes.stride, at_edge, factor);
          // A gradient that is no number stays away from corners outside.
#pragma GCC unroll 16
          for (int k = 0; k < count; ++k)
            dot[k] = multiply_add(corners.inside ? grad : only(grad, at_edge.lanes[k]), factor[k],
                                  dot[k]);
        }
        if (Values) {
#pragma GCC unroll 16
          for (int k = 0; k < count; ++k) factor[k] = grad * weight[k];
          corners.add(grad_values + c * channel_stride, lanes.stride, at_edge, factor,
                      std::min(points - at, kLanes));
        }
      }
      if (!Coords) continue;
      FloatLanes grad[ndim];
      for (int axis = 0; axis < ndim; ++axis) {
        corners.weigh(axis, weight);
        grad[axis] = weight[0] * dot[0];
#pragma GCC unroll 16
        for (int k = 1; k < count; ++k) grad[axis] += weight[k] * dot[k];
      }
      if (lanes.is_whole()) {
        store_coords<ndim>(grad_coords + (p + at) * ndim, grad);
        continue;
      }
      float packed[kLanes * ndim];
      store_coords<ndim>(packed, grad);
      for (int i = 0; i < std::min(points - at, kLanes); ++i)
        memcpy(grad_coords + batch.points.point[at + i] * ndim, packed + i * ndim,
               ndim * sizeof(float));
    }
  }
}

// ---- the part of a grid that points read ----

// The entries along an axis of `size` that are read at coordinates in [low, high].
inline void entries_between(const Problem& problem, int axis, double low, double high,
                            int64_t& first, int64_t& last) {
  constexpr double kBesides = 2 * kMaxTaps;  // taps, and what is rounded
  const int64_t size = problem.size[axis];
  const double end = static_cast<double>(size - 1);
  const bool align_corners = problem.align_corners;
  low = unpadded_index(low, size, align_corners).at - kBesides;
  high = unpadded_index(high, size, align_corners).at + kBesides;
  const double below = low, above = high;
  if (problem.padding == Padding::reflection) {
    if (below < 0) high = std::max(high, -below);
    if (above > end) low = std::min(low, 2 * end - above);
  }
  // (False for NaN, by which all entries are read.)
  first = low > 0 ? static_cast<int64_t>(std::min(low, end)) : 0;
  last = high < end ? static_cast<int64_t>(std::max(high, 0.0)) : size - 1;
}

template <int ndim>
void bounds(const Problem& problem, const Range& range, int64_t* first, int64_t* last) {
  constexpr float kLargestNormal = 5.8f;  // of the jitter's: sqrt(-2 log(2^-24)), and some more
  Problem still = problem;
  still.seed = nullptr;
  LanePoints<Mode::nearest, ndim> lanes(still, range);
  Batch<float> batch;
  FloatLanes low[ndim], high[ndim], not_finite = {};
  for (int axis = 0; axis < ndim; ++axis) {
    low[axis] = all<FloatLanes>(INFINITY);
    high[axis] = -low[axis];
  }
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    lanes.take(p, batch);
    for (int at = 0; at < kBatch; at += kLanes) {
      FloatLanes coord[ndim];
      lanes.coords(at, batch, coord);
      for (int axis = 0; axis < ndim; ++axis) {
        low[axis] = coord[axis] < low[axis] ? coord[axis] : low[axis];
        high[axis] = coord[axis] > high[axis] ? coord[axis] : high[axis];
        not_finite += coord[axis] - coord[axis];
      }
    }
  }
  const Vector<float> sum{not_finite};
  const float unknown = sum_lanes<float>(&sum);  // 0 or NaN
  for (int axis = 0; axis < ndim; ++axis) {
    float least = INFINITY, most = -INFINITY;
    for (int i = 0; i < kLanes; ++i) {
      least = std::min(least, low[axis][i]);
      most = std::max(most, high[axis][i]);
    }
    const float* const jitter_std = static_cast<const float*>(problem.jitter_std);
    const float far = problem.seed ? kLargestNormal * std::fabs(jitter_std[ndim - 1 - axis]) : 0;
    entries_between(problem, axis, double{least} - far + unknown, double{most} + far + unknown,
                    first[axis], last[axis]);
  }
}

// ---- from run-time types to compile-time ones ----

// Calls f with mode and dimensions as constants.
template <class F>
CRAD_INLINE void with_image(const Problem& problem, F f) {
  with_mode(problem.mode, [&](auto mode) {
    with_small(problem.ndim, [&](auto ndim) {
      if constexpr (ndim <= 3 && (mode != Mode::cubic || ndim <= 2)) f(mode, ndim);
    });
  });
}

inline void bounds(const Problem& problem, const Range& range, int64_t* low, int64_t* high) {
  with_small(problem.ndim, [&](auto ndim) {
    if constexpr (ndim <= 3) bounds<ndim>(problem, range, low, high);
  });
}

inline void forward_image(const Problem& problem, const Range& range, const Output& output) {
  with_image(problem, [&](auto mode, auto ndim) {
    constexpr Mode kMode = decltype(mode)::value;
    // What is read behind the entries that are not the last ones of the first axis lies before
    // these.
    const bool rows = problem.channels > 1 && problem.channel_stride == 1 &&
                      problem.stride[0] >= problem.channels;
    if (problem.channels > kMostPlanes)
      forward_plane_by_plane<kMode, ndim>(problem, range, output);
    else if (!rows)
      forward_planes<kMode, ndim>(problem, range, output);
    else if (problem.channels <= 4)
      forward_rows<1, kMode, ndim>(problem, range, output);
    else
      forward_rows<2, kMode, ndim>(problem, range, output);
  });
}

template <bool Values, bool Coords>
void backward_image(const Problem& problem, const Range& range, const Gradients& gradients) {
  with_image(problem, [&](auto mode, auto ndim) {
    backward_image<Values, Coords, decltype(mode)::value, ndim>(problem, range, gradients);
  });
}

}  // namespace
}  // namespace crad
