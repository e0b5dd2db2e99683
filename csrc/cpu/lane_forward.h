// The forward loops whose vectors have points as lanes: for images and volumes of few channels, and
// for few points of any.
#pragma once

#include <algorithm>
#include <cstring>

#include "lane_corners.h"
#include "point_rows.h"

namespace crad {
namespace {

// Calls f with a number of the type that sums of floats are rounded to.
template <class F>
CRAD_INLINE void with_result_type(ValueType type, F f) {
  with_value_type(type, [&](auto number) __attribute__((always_inline)) {
    if constexpr (!std::is_same_v<decltype(number), double>) f(number);
  });
}

template <class T>
CRAD_INLINE void round_to(const float* sums, int64_t count, T* to) {
  if constexpr (is_half<T>) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(sums + i));
    for (; i < count; ++i) narrow(sums[i], to[i]);
  } else {
    memcpy(to, sums, count * sizeof(float));
  }
}

// ---- forward, of rows of channels ----

// The sums of a vector of points, one point after the other: all channels of a point at
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
    for (int j = 0; j < fours; ++j) store_four(to + i * channels + 4 * j, total[j]);
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
        const float* from = grid + entry[i];  // step by step: GCC would keep sums in memory
        for (int axis = 0, left = k; axis < ndim; ++axis, left /= taps)
          from += left % taps * stride[axis];
        for (int j = 0; j < fours; ++j)
          total[j] = multiply_add(load_four(from + 4 * j), weights[k][i], total[j]);
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
  LanePoints<mode, ndim> lanes(problem, range, true);
  const LaneAxes<ndim> axes = lanes.axes();
  LaneBatch<mode, ndim> batch;
  float rows[kBatch * kMostPlanes + kMostPlanes];
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = lanes.take(p, batch.points);
    lanes.locate(axes, batch);
    for (int v = 0; v < kVectors; ++v)
      blend_rows<fours>(grid, channels, batch.corners[v], lanes.stride, batch.at_edge[v],
                        rows + v * kLanes * channels);
    with_result_type(problem.value_type, [&](auto result) {
      using T = decltype(result);
      round_to(rows, points * channels, row_of<T>(output, p));
    });
  }
}

// ---- forward, of planes ----

// Where the results of a vector of points belong.
class LaneOutput {
 public:
  LaneOutput(const Problem& problem, const Range& range, const Output& output)
      : type_(problem.value_type),
        point_step_(output.planes ? 1 : output.row),
        channel_step_(output.planes ? problem.points_per_grid : 1) {
    // Of planes, the results of other grids' channels lie before those of the range's points.
    const int64_t grid = range.point_begin / problem.points_per_grid;
    before_ = output.planes ? (problem.channels - 1) * grid * problem.points_per_grid
                            : -output.first_point * output.row - output.first_channel;
    data_ = output.data;
  }

  // Where those of channel 0 of whole vectors are stored, from number `first` of the range on; null
  // if they are not stored so as they are. Those of the next channel lie `channel_step` from there.
  float* whole(int64_t first) const {
    const bool can = type_ == ValueType::float32 && point_step_ == 1;
    return can ? static_cast<float*>(data_) + before_ + first : nullptr;
  }
  int64_t channel_step() const { return channel_step_; }

  // Stores those of a channel of the vector whose first point is number `first` of the range.
  CRAD_ALWAYS_INLINE void store(int64_t channel, int64_t first, int points,
                                FloatLanes result) const {
    with_result_type(type_, [&](auto rounded) {
      using T = decltype(rounded);
      T* const to = static_cast<T*>(data_) + before_ + channel * channel_step_;
      if (point_step_ == 1 && points >= kLanes)
        return crad::store(to + first, Vector<float>{result});
      for (int i = 0; i < std::min(points, kLanes); ++i)
        narrow(float{result[i]}, to[(first + i) * point_step_]);
    });
  }

 private:
  void* data_;
  int64_t before_;
  const ValueType type_;
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
class PlaneSampler {
 public:
  PlaneSampler(const Problem& problem, const Range& range, const Output& output)
      : range_(range),
        grid_(grid_of<float>(problem, range)),
        channels_(problem.channels),
        channel_stride_(problem.channel_stride),
        to_(problem, range, output),
        points_(problem, range) {}

  void run() {
    const LaneAxes<ndim> axes = points_.axes();
    for (int64_t p = range_.point_begin; p < range_.point_end; p += kBatch) {
      const int points = points_.take(p, batch_.points);
      points_.locate(axes, batch_);
      float* const whole = points == kBatch ? to_.whole(p) : nullptr;
      if (whole) {
        const int64_t step = to_.channel_step();
        for (int v = 0; v < kVectors; ++v)
          blend(v, [&](int64_t c, FloatLanes result) __attribute__((always_inline)) {
            store_lanes(whole + c * step + v * kLanes, result);
          });
      } else {
        store_apart(p, points);
      }
    }
  }

 private:
  // Calls f with the results of a vector, channel by channel.
  template <class F>
  CRAD_ALWAYS_INLINE void blend(int v, F f) const {
    const LaneCorners<mode, ndim>& corners = batch_.corners[v];
    FloatLanes weight[LaneCorners<mode, ndim>::count];
    corners.weigh(-1, weight);
    const float* plane = grid_;
    for (int64_t c = 0, channels = channels_; c < channels; ++c, plane += channel_stride_)
      f(c, blend_plane(plane, corners, points_.stride, batch_.at_edge[v], weight));
  }

  __attribute__((noinline)) void store_apart(int64_t first, int points) const {
    for (int at = 0; at < points; at += kLanes)
      blend(at / kLanes, [&](int64_t c, FloatLanes result) __attribute__((always_inline)) {
        to_.store(c, first + at, points - at, result);
      });
  }

  const Range& range_;
  const float* const grid_;
  const int64_t channels_, channel_stride_;
  const LaneOutput to_;
  LanePoints<mode, ndim> points_;
  LaneBatch<mode, ndim> batch_;
};

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
      lanes.locate(lanes.axes(), batches[at / kBatch]);
    }
    for (int64_t c = 0; c < problem.channels; ++c)
      for (int64_t at = 0; at < points; at += kLanes) {
        const LaneBatch<mode, ndim>& batch = batches[at / kBatch];
        const int v = at % kBatch / kLanes;
        const LaneCorners<mode, ndim> corners = batch.corners[v];
        FloatLanes weight[corners.count];
        corners.weigh(-1, weight);
        to.store(c, p + at, static_cast<int>(points - at),
                 blend_plane(grid + c * problem.channel_stride, corners, lanes.stride,
                             batch.at_edge[v], weight));
      }
  }
}

inline void forward_lanes(const Problem& problem, const Range& range, const Output& output) {
  with_lanes(problem, [&](auto mode, auto ndim) {
    constexpr Mode kMode = decltype(mode)::value;
    // What is read behind the entries that are not the last ones of the first axis lies before
    // these.
    const bool rows = problem.channels > 1 && problem.channel_stride == 1 &&
                      problem.stride[0] >= problem.channels;
    if (problem.channels > kMostPlanes)
      forward_plane_by_plane<kMode, ndim>(problem, range, output);
    else if (!rows)
      PlaneSampler<kMode, ndim>(problem, range, output).run();
    else if (problem.channels <= 4)
      forward_rows<1, kMode, ndim>(problem, range, output);
    else
      forward_rows<2, kMode, ndim>(problem, range, output);
  });
}

}  // namespace
}  // namespace crad
