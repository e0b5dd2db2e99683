// The part of a grid that a range of points reads.
#pragma once

#include <algorithm>
#include <cmath>

#include "lane_corners.h"

namespace crad {
namespace {

// The entries along an axis of `size` that are read at coordinates in [low, high].
inline void entries_between(const Problem& problem, int axis, double low, double high,
                            int64_t& first, int64_t& last) {
  constexpr double kBesides = 2 * kMaxTaps;  // taps, and what is rounded
  const int64_t size = problem.size[axis];
  const double end = static_cast<double>(size - 1);
  const Placement<double> placement =
      placement_of<double>(size, problem.align_corners[axis], problem.unit);
  low = unpadded_index(low, placement).at - kBesides;
  high = unpadded_index(high, placement).at + kBesides;
  const double below = low, above = high;
  switch (problem.padding[axis]) {
    case Padding::zeros:
    case Padding::border:
      break;
    case Padding::reflection:
      if (below < 0) high = std::max(high, -below);
      if (above > end) low = std::min(low, 2 * end - above);
      break;
    case Padding::circular:
      if (below < 0 || above > end) low = 0, high = end;
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
    low[axis] = constant<FloatLanes>(INFINITY);
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

inline void bounds(const Problem& problem, const Range& range, int64_t* low, int64_t* high) {
  with_small(problem.ndim, [&](auto ndim) {
    if constexpr (ndim <= 3) bounds<ndim>(problem, range, low, high);
  });
}

}  // namespace
}  // namespace crad
