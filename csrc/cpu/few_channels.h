// The loops for entries of few channels: the lanes of a vector are points, not channels. (Backward,
// those of tap_rows.h come first, where they fit.)
#pragma once

#include "grad_output.h"
#include "kernels.h"
#include "locate.h"
#include "simd.h"

namespace crad {
namespace {

constexpr int64_t kFewChannels = 7;  // at most; more fill a vector's lanes well enough themselves

constexpr uint32_t kAllLanes = ~uint32_t{0};
static_assert(kLanes == 32, "a bit for each");

// The lanes, a bit each, that have none of these bits.
inline uint32_t lanes_without(uint32_t bits, const uint32_t (&lane)[kLanes]) {
  uint32_t lanes = 0;
#if CRAD_VECTOR_BYTES == 64
  const __m512i wanted = _mm512_set1_epi32(static_cast<int32_t>(bits));
  for (int i = 0; i < kLanes; i += 16)
    lanes |= static_cast<uint32_t>(_mm512_testn_epi32_mask(_mm512_loadu_si512(lane + i), wanted))
             << i;
#else
  for (int i = 0; i < kLanes; ++i) lanes |= static_cast<uint32_t>((lane[i] & bits) == 0) << i;
#endif
  return lanes;
}

// What lies at `offset` from `base` in those lanes, 0 in others, from which nothing is read.
template <class A>
inline Lanes<A> gather(const A* base, const Lanes<int64_t>& offset, uint32_t lanes) {
  Lanes<A> result;
  for (int i = 0; i < kLanes; ++i) result[i] = lanes >> i & 1 ? base[offset[i]] : A(0);
  return result;
}

#if CRAD_VECTOR_BYTES == 64
inline Lanes<float> gather(const float* base, const Lanes<int64_t>& offset, uint32_t lanes) {
  const auto eight = [&](int first) __attribute__((always_inline)) {
    return _mm512_mask_i64gather_ps(_mm256_setzero_ps(), static_cast<__mmask8>(lanes >> first),
                                    _mm512_load_si512(offset.lane + first), base, sizeof(float));
  };
  Lanes<float> result;
  for (int i = 0; i < kLanes; i += 16)
    _mm512_store_ps(result.lane + i,
                    _mm512_insertf32x8(_mm512_castps256_ps512(eight(i)), eight(i + 8), 1));
  return result;
}
#endif

// sum += a * b
template <class A>
inline void add_product(const Lanes<A>& a, const Lanes<A>& b, Lanes<A>& sum) {
  for (int i = 0; i < kLanes; i += Pack<A>::width)
    store(sum.lane + i, multiply_add(load(a.lane + i), load(b.lane + i), load(sum.lane + i)));
}

// What the points of a block read.
template <class A>
struct Reads {
  Buffer<uint32_t> lanes;  // of a corner: those whose entry lies inside the grid
  Buffer<Lanes<int64_t>> offset;
  uint32_t finite;

  explicit Reads(int corners) : lanes(corners), offset(corners) {}

  template <class X>
  void set(const Corners<A>& corners, const Block<X>& block) {
    uint32_t outside[kLanes];
    finite = 0;
    for (int i = 0; i < kLanes; ++i) outside[i] = ~block.inside[i];
    for (int i = 0; i < kLanes; ++i) finite |= (block.finite[i] & 1) << i;
    for (int k = 0; k < corners.count; ++k) {
      lanes[k] = lanes_without(corners.needs[k], outside) & finite;
      const Lanes<int64_t>& from = corners.offset[corners.follow ? 0 : k];
      const int64_t step = corners.follow ? corners.step[k] : 0;
      for (int i = 0; i < kLanes; ++i) offset[k][i] = from[i] + step;
    }
  }

  // What sums over entries begin with: 0, or NaN at an index that is no place.
  Lanes<A> beginning() const {
    Lanes<A> start;
    for (int i = 0; i < kLanes; ++i) start[i] = finite >> i & 1 ? A(0) : static_cast<A>(NAN);
    return start;
  }
};

template <class A, class X>
void forward_few(const Problem& problem, const Range& range, const A* grid, const Output& output) {
  const Geometry<X> geometry = geometry_of<X>(problem);
  const X* coords = static_cast<const X*>(problem.coords);
  const int64_t channels = problem.channels;
  Block<X> block;
  Corners<A> corners(geometry);
  Reads<A> reads(corners.count);
  Lanes<A> total[kFewChannels];
  for (int64_t p = range.point_begin; p < range.point_end; p += kLanes) {
    const int points = prepare(geometry, coords, range, p, block, corners);
    reads.set(corners, block);
    const Lanes<A> beginning = reads.beginning();
    for (int64_t c = 0; c < channels; ++c) {
      total[c] = beginning;
      for (int k = 0; k < corners.count; ++k)
        add_product(gather(grid + c * problem.channel_stride, reads.offset[k], reads.lanes[k]),
                    corners.weight[k], total[c]);
    }
    for (int i = 0; i < points; ++i) {
      A* const row = row_of<A>(output, block.point[i]);
      for (int64_t c = 0; c < channels; ++c) row[c] = total[c][i];
    }
  }
}

template <bool Values, bool Coords, class A, class X>
void backward_few(const Problem& problem, const Range& range, const A* grid,
                  const Gradients& gradients) {
  const Geometry<X> geometry = geometry_of<X>(problem);
  const X* coords = static_cast<const X*>(problem.coords);
  const int64_t channels = problem.channels;
  Block<X> block;
  Corners<A> corners(geometry);
  Reads<A> reads(corners.count);
  Buffer<Lanes<A>> dot(corners.count);  // of grad_output with the entry of a corner
  Lanes<A> grad[kFewChannels];
  GradientRows<A> rows(problem, range, gradients);
  A outside[kFewChannels] = {};
  A* const grids[] = {outside, static_cast<A*>(gradients.grad_values)};
  for (int64_t p = range.point_begin; p < range.point_end; p += kLanes) {
    const int points = prepare(geometry, coords, range, p, block, corners);
    reads.set(corners, block);
    rows.fetch(block.point);
    for (int i = 0; i < kLanes; ++i)
      for (int64_t c = 0; c < channels; ++c) grad[c][i] = rows[i][c];
    const Lanes<A> beginning = reads.beginning();
    for (int k = 0; k < corners.count; ++k) {
      const uint32_t lanes = reads.lanes[k];
      if (Coords) {
        dot[k] = beginning;
        for (int64_t c = 0; c < channels; ++c)
          add_product(gather(grid + c * problem.channel_stride, reads.offset[k], lanes), grad[c],
                      dot[k]);
        // A gradient that is no number stays away from corners outside.
        if (lanes != kAllLanes)
          for (int i = 0; i < kLanes; ++i)
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
    if (Coords) differentiate(geometry, block, corners, dot, points, gradients);
  }
}

}  // namespace
}  // namespace crad
