// The loops for entries of a few channels of float. Backward, where the taps of a point along the
// last axis lie next to each other, they are read and added to together, as a row of taps and
// channels. Of a simplex a row is a corner, and it has a forward loop, too.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "corners.h"
#include "kernels.h"
#include "point_rows.h"
#include "simd.h"
#include "transpose.h"

#if CRAD_VECTOR_BYTES > 16

namespace crad {
namespace {

// The points of a batch and their rows: the corners that differ along the last axis alone, or all
// of a simplex, by themselves.
template <int width, int taps, class X>
struct TapRows {
  using Vector = MaskedVector<width>;

  const int channels;
  const int last;  // axis
  Corners<X, float> corners;
  const int count;               // of a point
  uint32_t lanes_of[1 << taps];  // those of some taps, a bit for each
  // In a row: those inside the grid along the last axis, or all of a simplex.
  uint32_t lanes[kBatch];
  uint32_t outside[kBatch];  // the taps outside that a row needs

  explicit TapRows(const Problem& problem)
      : channels(static_cast<int>(problem.channels)),
        last(problem.ndim - 1),
        corners(problem),
        count(corners.count / taps) {
    const uint32_t one = (uint32_t{1} << channels) - 1;
    for (int some = 0; some < 1 << taps; ++some) {
      lanes_of[some] = 0;
      for (int tap = 0; tap < taps; ++tap)
        if (some >> tap & 1) lanes_of[some] |= one << tap * channels;
    }
  }

  // Returns how many points there are.
  int prepare(const Range& range, int64_t first) {
    const int points = corners.prepare(range, first);
    const Batch<X>& batch = corners.batch;
    const uint32_t of_simplex = corners.problem.simplex ? ~uint32_t{0} : 0;
    const uint32_t others = ((uint32_t{1} << last * kMaxTaps) - 1) | of_simplex;
    for (int i = 0; i < kBatch; ++i) {
      outside[i] = ~batch.inside[i] & others;
      const uint32_t at_last = batch.inside[i] >> last * kMaxTaps | of_simplex;
      const uint32_t inside = at_last & ((1 << taps) - 1);
      lanes[i] = batch.finite[i] && i < points ? lanes_of[inside] : 0;
    }
    return points;
  }

  // The lanes of a point's row that lie inside the grid.
  uint32_t bits(int row, int point) const {
    return corners.needs(row, point) & outside[point] ? 0 : lanes[point];
  }

  int64_t offset(int row, int point) const { return corners.corner(row, point).offset; }

  Vector weight(int row, int point) const {
    Vector result = Vector::broadcast(corners.weight[row][point]);
    for (int tap = 1; tap < taps; ++tap)
      result = result.with(corners.weight[tap * count + row][point], lanes_of[1 << tap]);
    return result;
  }
};

// Calls f for every point of a batch, and for neighbours not one after the other: they often add to
// the same entries, and what has just been stored in pieces takes long to be read.
template <class F>
inline void for_each_apart(F f) {
  constexpr int apart = 4;
  for (int first = 0; first < apart; ++first)
    for (int i = first; i < kBatch; i += apart) f(i);
}

// A row of taps and channels whose lanes do not lie next to each other.
template <int width, int taps>
MaskedVector<width> load_apart(const Problem& problem, const float* grid, uint32_t bits) {
  float lane[width] = {};
  const int channels = static_cast<int>(problem.channels);
  for (int tap = 0, i = 0; tap < taps; ++tap)
    for (int c = 0; c < channels; ++c, ++i)
      if (bits >> i & 1)
        lane[i] = grid[tap * problem.stride[problem.ndim - 1] + c * problem.channel_stride];
  return MaskedVector<width>::load(lane, (uint32_t{1} << width) - 1);
}

template <bool Values, bool Coords, int width, int taps, class X>
void backward_tap_rows(const Problem& problem, const Range& range, const Gradients& gradients) {
  using Vector = MaskedVector<width>;
  const float* const grid = grid_of<float>(problem, range);
  float* const grad_values = static_cast<float*>(gradients.grad_values);
  const bool apart = problem.channel_stride != 1 ||
                     (taps > 1 && problem.stride[problem.ndim - 1] != problem.channels);
  GradOutputRows<float> grad_rows(problem, range, gradients);
  TapRows<width, taps, X> rows(problem);
  const int channels = rows.channels;
  Buffer<PerPoint<float>> dot(rows.corners.count);  // of grad_output with the entry of a corner
  int32_t repeated[16];  // the channels for every tap, then a lane that is 0
  for (int i = 0; i < 16; ++i) repeated[i] = i < taps * channels ? i % channels : width - 1;
  Vector grad[kBatch];
  Square<float, width> product[kBatch / width];
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = rows.prepare(range, p);
    prefetch_next<X>(problem, range, p, gradients, grad_rows);
    grad_rows.fetch(rows.corners.batch.point);
    for (int i = 0; i < kBatch; ++i)
      grad[i] = Vector::load(grad_rows[i], rows.lanes_of[1]).permuted(repeated);
    for (int r = 0; r < rows.count; ++r) {
      for_each_apart([&](int i) __attribute__((always_inline)) {
        const uint32_t bits = rows.bits(r, i);
        const int64_t offset = rows.offset(r, i);
        if (Values)
          multiply_add(rows.weight(r, i), grad[i], Vector::load(grad_values + offset, bits))
              .store(grad_values + offset, bits);
        if (Coords) {
          // A gradient that is no number stays away from corners outside.
          const Vector entries = apart ? load_apart<width, taps>(problem, grid + offset, bits)
                                       : Vector::load(grid + offset, bits);
          const Vector row = grad[i].only(bits) * entries;
          memcpy(&product[i / width].row[i % width], &row, sizeof(row));
        }
      });
      if (!Coords) continue;
      for (int part = 0; part < kBatch / width; ++part) {
        product[part].transpose();
        for (int tap = 0; tap < taps; ++tap) {
          auto total = product[part].row[tap * channels];
          for (int c = 1; c < channels; ++c) total += product[part].row[tap * channels + c];
          memcpy(dot[tap * rows.count + r].at + part * width, &total, sizeof(total));
        }
      }
    }
    if (!Coords) continue;
    for (int i = 0; i < points; ++i)
      if (!rows.corners.batch.finite[i])
        for (int k = 0; k < rows.corners.count; ++k) dot[k][i] = NAN;
    rows.corners.differentiate(dot, points, gradients);
  }
}

// Calls f with the width and the number of taps of a row, if a call has rows; whether it has.
template <class F>
bool with_row(const Problem& problem, F f) {
  if (problem.simplex && problem.channels > 1 && problem.channels <= kFewChannels)
    return f(std::integral_constant<int, 8>{}, std::integral_constant<int, 1>{}), true;
  const int64_t used = problem.channels * tap_count(problem.mode);
  if (problem.channels == 1 || problem.channels > kFewChannels || used > CRAD_VECTOR_BYTES / 4 ||
      !taps_follow_each_other(problem))
    return false;
  with_mode(problem.mode, [&](auto mode) {
    constexpr std::integral_constant<int, tap_count(mode)> taps{};
    if constexpr (CRAD_VECTOR_BYTES == 64)
      if (used > 8) return f(std::integral_constant<int, 16>{}, taps);
    f(std::integral_constant<int, 8>{}, taps);
  });
  return true;
}

// The backward pass of a call whose points have rows; false if it has none, and nothing was done.
template <bool Values, bool Coords, class X>
bool backward_tap_rows(const Problem& problem, const Range& range, const Gradients& gradients) {
  return with_row(problem, [&](auto width, auto taps) {
    backward_tap_rows<Values, Coords, width, taps, X>(problem, range, gradients);
  });
}

// The sample of a simplex by points whose channels lie together; false if it is none, and nothing
// was done.
template <class X>
bool forward_tap_rows(const Problem& problem, const Range& range, const Output& output) {
  constexpr int width = 8;
  using Vector = MaskedVector<width>;
  if (!problem.simplex || problem.channels == 1 || problem.channels > kFewChannels ||
      problem.channel_stride != 1)
    return false;
  const float* const grid = grid_of<float>(problem, range);
  TapRows<width, 1, X> rows(problem);
  const uint32_t channels = rows.lanes_of[1];
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = rows.prepare(range, p);
    for (int i = 0; i < points; ++i) {
      Vector total = Vector::broadcast(rows.corners.batch.finite[i] ? 0.0f : NAN);
      for (int r = 0; r < rows.count; ++r)
        total = multiply_add(rows.weight(r, i),
                             Vector::load(grid + rows.offset(r, i), rows.bits(r, i)), total);
      total.store(row_of<float>(output, rows.corners.batch.point[i]), channels);
    }
  }
  return true;
}

}  // namespace
}  // namespace crad

#endif
