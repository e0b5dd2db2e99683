// The backward loops whose vectors have points as lanes.
#pragma once

#include <algorithm>
#include <cstring>

#include "lane_corners.h"
#include "point_rows.h"
#include "transpose.h"

namespace crad {
namespace {

// The gradient of the output, where the points of a batch read it: `row(c)` has that of channel c.
class LaneGradients {
 public:
  LaneGradients(const Problem& problem, const Gradients& gradients)
      : strides_(gradients.grad_output_strides),
        channels_(problem.channels),
        step_(strides_ ? strides_->step : 1),
        first_(static_cast<const float*>(gradients.grad_output)),
        packed_(problem.channels) {}

  // Of as many points as a batch has, from number `first` on.
  void fetch_whole(int64_t first) {
    if (!strides_ && channels_ > 1) {
      row_ = packed_[0].at;
      row_step_ = kBatch;
      return transpose_elements(first_ + first * channels_, channels_, kBatch, channels_,
                                packed_[0].at, int64_t{kBatch});
    }
    const int64_t offset = strides_ ? offset_of_line(first) : first;
    if (offset < 0) {
      int64_t point[kBatch];
      for (int i = 0; i < kBatch; ++i) point[i] = first + i;
      return fetch(point);
    }
    row_ = first_ + offset;
    row_step_ = step_;
  }

  __attribute__((noinline)) void fetch(const int64_t (&point)[kBatch]) {
    int64_t offset[kBatch];
    if (strides_)
      offsets_of(*strides_, point, offset);
    else
      for (int i = 0; i < kBatch; ++i) offset[i] = point[i] * channels_;
    row_ = packed_[0].at;
    row_step_ = kBatch;
    for (int64_t c = 0; c < channels_; ++c)
      for (int i = 0; i < kBatch; ++i) packed_[c][i] = first_[offset[i] + c * step_];
  }

  // Of contiguous ones, the row of a point.
  const float* row_of(int64_t point) const { return first_ + point * channels_; }

  const float* row(int64_t channel) const { return row_ + channel * row_step_; }

 private:
  // The offset of the row of point `first`, if those of a batch follow each other; -1 if not.
  int64_t offset_of_line(int64_t first) const {
    const int last = strides_->axes - 1;
    if (last < 0) return -1;
    int64_t offset = 0;
    for (int axis = last; axis >= 0; --axis) {
      const int64_t line = axis > 0 ? first / strides_->size[axis] : 0;
      const int64_t at = first - line * strides_->size[axis];
      if (axis == last && (strides_->stride[axis] != 1 || at + kBatch > strides_->size[axis]))
        return -1;
      offset += at * strides_->stride[axis];
      first = line;
    }
    return offset;
  }

  const RowStrides* const strides_;  // null: contiguous
  const int64_t channels_, step_;
  const float* const first_;
  Buffer<PerPoint<float>> packed_;
  const float* row_;
  int64_t row_step_;
};

// `fours`: the channels of an entry follow each other, and are so many times four; so are those of
// a point's gradient. 0: whatever they are.
template <bool Values, bool Coords, Mode mode, int ndim, int fours>
void backward_lanes(const Problem& problem, const Range& range, const Gradients& gradients) {
  constexpr int count = LaneCorners<mode, ndim>::count;
  const float* const grid = grid_of<float>(problem, range);
  float* const grad_values = static_cast<float*>(gradients.grad_values);
  float* const grad_coords = static_cast<float*>(gradients.grad_coords);
  const int64_t channels = problem.channels, channel_stride = problem.channel_stride;
  LanePoints<mode, ndim> lanes(problem, range);
  if (!Coords) lanes.keep_rows(gradients.first_row, gradients.end_row);
  const LaneAxes<ndim> axes = lanes.axes();
  LaneBatch<mode, ndim> batch;
  LaneGradients grads(problem, gradients);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = lanes.take(p, batch.points);
    if (Coords || fours == 0) {
      if (lanes.is_whole())
        grads.fetch_whole(p);
      else
        grads.fetch(batch.points.point);
    }
    lanes.locate(axes, batch);
    for (int at = 0; at < points; at += kLanes) {
      const LaneCorners<mode, ndim>& corners = batch.corners[at / kLanes];
      const LanesAtEdge<mode, ndim>& at_edge = batch.at_edge[at / kLanes];
      FloatLanes weight[count], dot[count];
      corners.weigh(-1, weight);
      const FloatLanes beginning = corners.inside ? FloatLanes{} : FloatLanes(at_edge.beginning);
      for (int k = 0; k < count; ++k) dot[k] = beginning;
      const auto add_products = [&](int k, FloatLanes grad,
                                    FloatLanes entry) __attribute__((always_inline)) {
        // A gradient that is no number stays away from corners outside.
        dot[k] = multiply_add(corners.inside ? grad : only(grad, at_edge.lanes[k]), entry, dot[k]);
      };
      if constexpr (fours > 0) {
        if (Values) {
          const float* row[kLanes];
          for (int i = 0; i < kLanes; ++i)
            row[i] = grads.row_of(lanes.is_whole() ? p + at + i : batch.points.point[at + i]);
          corners.template add_rows<fours>(grad_values, lanes.stride, at_edge, weight, row,
                                           std::min(points - at, kLanes));
        }
        if (Coords && mode != Mode::nearest)
          for (int64_t c = 0; c < 4 * fours; c += 4)
#pragma GCC unroll 16
            for (int k = 0; k < count; ++k) {
              FloatLanes entry[4];
              corners.read_four(k, grid + c, lanes.stride, at_edge, entry);
              for (int j = 0; j < 4; ++j)
                add_products(k, load_lanes(grads.row(c + j) + at), entry[j]);
            }
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          const FloatLanes grad = load_lanes(grads.row(c) + at);
          FloatLanes factor[count];
          if (Coords && mode != Mode::nearest) {  // which stays where it is
            corners.read(grid + c * channel_stride, lanes.stride, at_edge, factor);
#pragma GCC unroll 16
            for (int k = 0; k < count; ++k) add_products(k, grad, factor[k]);
          }
          if (Values) {
#pragma GCC unroll 16
            for (int k = 0; k < count; ++k) factor[k] = grad * weight[k];
            corners.add(grad_values + c * channel_stride, lanes.stride, at_edge, factor,
                        std::min(points - at, kLanes));
          }
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

template <bool Values, bool Coords>
void backward_lanes(const Problem& problem, const Range& range, const Gradients& gradients) {
  with_lanes(problem, [&](auto mode, auto ndim) {
    constexpr Mode kMode = decltype(mode)::value;
    const bool rows = problem.channel_stride == 1 && !gradients.grad_output_strides;
    if (rows && problem.channels == 4)
      backward_lanes<Values, Coords, kMode, ndim, 1>(problem, range, gradients);
    else if (rows && problem.channels == 8)
      backward_lanes<Values, Coords, kMode, ndim, 2>(problem, range, gradients);
    else
      backward_lanes<Values, Coords, kMode, ndim, 0>(problem, range, gradients);
  });
}

}  // namespace
}  // namespace crad
