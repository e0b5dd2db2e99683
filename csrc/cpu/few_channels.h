// The loops for entries of few channels where lane_forward.h and lane_backward.h do not apply, as
// for float64, derivatives of weights and many axes: see plan.h. The lanes of a vector are points,
// not channels, and what is computed of them goes through memory. (Backward, tap_rows.h comes first
// where it fits.)
#pragma once

#include "corners.h"
#include "kernels.h"
#include "point_rows.h"
#include "simd.h"

namespace crad {
namespace {

constexpr uint32_t kAllLanes = ~uint32_t{0};
static_assert(kBatch == 32, "a bit for each");

// The lanes, a bit each, that are 0.
CRAD_INLINE uint32_t lanes_of_zeros(const uint32_t (&lane)[kBatch]) {
  uint32_t lanes = 0;
#if CRAD_VECTOR_BYTES == 64
  for (int i = 0; i < kBatch; i += 16) {
    const __m512i bits = _mm512_loadu_si512(lane + i);
    lanes |= static_cast<uint32_t>(_mm512_testn_epi32_mask(bits, bits)) << i;
  }
#else
  for (int i = 0; i < kBatch; ++i) lanes |= static_cast<uint32_t>(lane[i] == 0) << i;
#endif
  return lanes;
}

// What lies at `offset` from `base` in those lanes, 0 in others, from which nothing is read.
template <class A>
inline PerPoint<A> gather(const A* base, const PerPoint<int64_t>& offset, uint32_t lanes) {
  PerPoint<A> result;
  for (int i = 0; i < kBatch; ++i) result[i] = lanes >> i & 1 ? base[offset[i]] : A(0);
  return result;
}

#if CRAD_VECTOR_BYTES == 64
CRAD_INLINE PerPoint<float> gather(const float* base, const PerPoint<int64_t>& offset,
                                   uint32_t lanes) {
  const auto eight = [&](int first) __attribute__((always_inline)) {
    return _mm512_mask_i64gather_ps(_mm256_setzero_ps(), static_cast<__mmask8>(lanes >> first),
                                    _mm512_load_si512(offset.at + first), base, sizeof(float));
  };
  PerPoint<float> result;
  for (int i = 0; i < kBatch; i += 16)
    _mm512_store_ps(result.at + i,
                    _mm512_insertf32x8(_mm512_castps256_ps512(eight(i)), eight(i + 8), 1));
  return result;
}
#endif

// sum += a * b
template <class A>
inline void add_product(const PerPoint<A>& a, const PerPoint<A>& b, PerPoint<A>& sum) {
  for (int i = 0; i < kBatch; i += Vector<A>::width)
    store(sum.at + i, multiply_add(load(a.at + i), load(b.at + i), load(sum.at + i)));
}

// What the points of a batch read.
template <class A>
struct Reads {
  Buffer<uint32_t> lanes;  // of a corner: those whose entry lies inside the grid
  Buffer<PerPoint<int64_t>> offset;
  uint32_t finite;

  explicit Reads(int corners) : lanes(corners), offset(corners) {}

  template <class X>
  void set(const Corners<X, A>& corners) {
    uint32_t outside[kBatch];
    finite = 0;
    for (int i = 0; i < kBatch; ++i) outside[i] = ~corners.batch.inside[i];
    for (int i = 0; i < kBatch; ++i) finite |= (corners.batch.finite[i] & 1) << i;
    for (int k = 0; k < corners.count; ++k) {
      uint32_t missing[kBatch];  // taps
      if (corners.problem.simplex) {
        for (int i = 0; i < kBatch; ++i) missing[i] = corners.needs(k, i) & outside[i];
      } else {
        const uint32_t needs = corners.needs(k, 0);
        for (int i = 0; i < kBatch; ++i) missing[i] = needs & outside[i];
      }
      lanes[k] = lanes_of_zeros(missing) & finite;
      const PerPoint<int64_t>& from = corners.offset[corners.follow ? 0 : k];
      const int64_t step = corners.follow ? corners.step[k] : 0;
      for (int i = 0; i < kBatch; ++i) offset[k][i] = from[i] + step;
    }
  }

  // What sums over entries begin with: 0, or NaN at an index that is no place.
  PerPoint<A> beginning() const {
    PerPoint<A> start;
    for (int i = 0; i < kBatch; ++i) start[i] = finite >> i & 1 ? A(0) : static_cast<A>(NAN);
    return start;
  }
};

template <class A, class X>
void forward_few(const Problem& problem, const Range& range, const Output& output) {
  const A* const grid = grid_of<A>(problem, range);
  const int64_t channels = problem.channels;
  Corners<X, A> corners(problem);
  Reads<A> reads(corners.count);
  PerPoint<A> total[kFewChannels];
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    reads.set(corners);
    const PerPoint<A> beginning = reads.beginning();
    for (int64_t c = 0; c < channels; ++c) {
      total[c] = beginning;
      for (int k = 0; k < corners.count; ++k)
        add_product(gather(grid + c * problem.channel_stride, reads.offset[k], reads.lanes[k]),
                    corners.weight[k], total[c]);
    }
    for (int i = 0; i < points; ++i) {
      A* const row = row_of<A>(output, corners.batch.point[i]);
      for (int64_t c = 0; c < channels; ++c) row[c] = total[c][i];
    }
  }
}

template <bool Values, bool Coords, class A, class X>
void backward_few(const Problem& problem, const Range& range, const Gradients& gradients) {
  const A* const grid = grid_of<A>(problem, range);
  const int64_t channels = problem.channels;
  Corners<X, A> corners(problem);
  Reads<A> reads(corners.count);
  Buffer<PerPoint<A>> dot(corners.count);  // of grad_output with the entry of a corner
  PerPoint<A> grad[kFewChannels];
  GradOutputRows<A> rows(problem, range, gradients);
  A outside[kFewChannels] = {};
  A* const grids[] = {outside, static_cast<A*>(gradients.grad_values)};
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    reads.set(corners);
    rows.fetch(corners.batch.point);
    for (int i = 0; i < kBatch; ++i)
      for (int64_t c = 0; c < channels; ++c) grad[c][i] = rows[i][c];
    const PerPoint<A> beginning = reads.beginning();
    for (int k = 0; k < corners.count; ++k) {
      const uint32_t lanes = reads.lanes[k];
      if (Coords) {
        dot[k] = beginning;
        for (int64_t c = 0; c < channels; ++c)
          add_product(gather(grid + c * problem.channel_stride, reads.offset[k], lanes), grad[c],
                      dot[k]);
        // A gradient that is no number stays away from corners outside.
        if (lanes != kAllLanes)
          for (int i = 0; i < kBatch; ++i)
            if (!(lanes >> i & 1)) dot[k][i] = beginning[i];
      }
      if (!Values) continue;
      for (int i = 0; i < points; ++i) {
        // What is added to corners outside is thrown away: a branch would be taken by chance.
        const int64_t inside = lanes >> i & 1;
        A* const entry = grids[inside] + (reads.offset[k][i] & -inside);
        const A weight = corners.weight[k][i];
        for (int64_t c = 0; c < channels; ++c) entry[c] += weight * grad[c][i];
      }
    }
    if (Coords) corners.differentiate(dot, points, gradients);
  }
}

}  // namespace
}  // namespace crad
