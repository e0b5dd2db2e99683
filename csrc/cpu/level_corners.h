// The corners of a vector of points in one of several grids: see level_loops.h.
#pragma once

#include "lanes.h"
#include "locate.h"

namespace crad {
namespace {

// ---- lanes of which something holds ----

CRAD_INLINE LaneMask equal(FloatLanes a, float b) {
#if CRAD_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(b), _CMP_EQ_OQ);
#else
  return a == b;
#endif
}

CRAD_INLINE FloatLanes choose(LaneMask lanes, FloatLanes a, FloatLanes b) {
#if CRAD_VECTOR_BYTES == 64
  return (FloatLanes)_mm512_mask_blend_ps(lanes, (__m512)b, (__m512)a);
#elif CRAD_VECTOR_BYTES == 32
  return (FloatLanes)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)lanes);
#else
  return lanes ? a : b;
#endif
}

// 0 in the other lanes.
CRAD_INLINE FloatLanes only(LaneMask lanes, FloatLanes a) {
#if CRAD_VECTOR_BYTES == 64
  return (FloatLanes)_mm512_maskz_mov_ps(lanes, (__m512)a);
#else
  return (FloatLanes)((IntLanes)a & lanes);
#endif
}

// a * b + c, and c in the other lanes.
CRAD_INLINE FloatLanes multiply_add(LaneMask lanes, FloatLanes a, FloatLanes b, FloatLanes c) {
#if CRAD_VECTOR_BYTES == 64
  return (FloatLanes)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)c, lanes);
#else
  return multiply_add(only(lanes, a), only(lanes, b), c);
#endif
}

// ---- corners ----

// One of the grids, and how points are located in it.
template <int ndim>
struct Level {
  struct {
    Placement<float> placement;
    float last;  // first of two entries
    int32_t size, stride;
    Padding padding;
    bool align_corners;
  } along[ndim];
  const float* values;
  int64_t channels;
  int64_t step[1 << ndim];  // from the lowest corner's offset to those of the others

  void set(const Problem& problem) {
    values = static_cast<const float*>(problem.values);
    channels = problem.channels;
    for (int axis = 0; axis < ndim; ++axis) {
      const int64_t size = problem.size[axis];
      const bool align_corners = problem.align_corners[axis];
      along[axis] = {placement_of<float>(size, align_corners, problem.unit),
                     static_cast<float>(size - 2),
                     static_cast<int32_t>(size),
                     static_cast<int32_t>(problem.stride[axis]),
                     problem.padding[axis],
                     align_corners};
    }
    for (int k = 0; k < 1 << ndim; ++k) {
      step[k] = 0;
      for (int axis = 0; axis < ndim; ++axis) step[k] += (k >> axis & 1) * problem.stride[axis];
    }
  }
};

// The corners of a vector of points: along every axis two entries that lie inside the grid. Of a
// point between such entries they are its taps. One of them is, at the border of the grid, and none
// outside.
template <int ndim>
struct LevelCorners {
  static constexpr int count = 1 << ndim, rows = count / 2, last = ndim - 1;

  IntLanes offset;  // of the lowest corner, in elements
  FloatLanes along[ndim][2];
  FloatLanes slope[ndim];  // of the second weight; that of the first is its opposite
  LaneMask taps[ndim][2];  // those of which the entry is a tap
  FloatLanes beginning;    // of sums: 0, or NaN where the index is no place

  CRAD_ALWAYS_INLINE void locate(const Level<ndim>& level, const FloatLanes (&coord)[ndim]) {
    offset = IntLanes{};
    beginning = FloatLanes{};
#pragma GCC unroll 4
    for (int axis = 0; axis < ndim; ++axis) {
      const auto axis_of = level.along[axis];
      const Index<FloatLanes> index =
          padded(unpadded_index(coord[axis], axis_of.placement), axis_of.size, Mode::linear,
                 axis_of.padding, axis_of.align_corners);
      const FloatLanes base = base_of(index.at, Mode::linear), t = index.at - base;
      const FloatLanes zero = {}, end = zero + axis_of.last, above = base > zero ? base : zero;
      const FloatLanes first = above < end ? above : end, beside = base - first;
      const LaneMask both = equal(beside, 0);
      along[axis][0] = choose(both, 1.0f - t, t);
      along[axis][1] = choose(both, t, 1.0f - t);
      slope[axis] = choose(both, index.slope, -index.slope);
      taps[axis][0] = both | equal(beside, -1);
      taps[axis][1] = both | equal(beside, 1);
      offset += to_int(first) * axis_of.stride;
      beginning += index.at - index.at;
    }
  }

  // The offset of every lane. (In memory: GCC would take them out of the vector, by more
  // instructions.)
  CRAD_ALWAYS_INLINE void offsets(uint32_t (&at)[kLanes]) const {
    memcpy(at, &offset, sizeof(at));
    asm("" : "+m"(at));
  }

  // The first axis is the fastest to vary in the order of corners. Those of a row differ along the
  // last axis alone.
  CRAD_ALWAYS_INLINE LaneMask inside(int k) const {
    LaneMask lanes = taps[0][k & 1];
#pragma GCC unroll 4
    for (int axis = 1; axis < ndim; ++axis) lanes &= taps[axis][k >> axis & 1];
    return lanes;
  }

  CRAD_ALWAYS_INLINE FloatLanes weight(int k) const {
    FloatLanes product = along[0][k & 1];
#pragma GCC unroll 4
    for (int axis = 1; axis < ndim; ++axis) product *= along[axis][k >> axis & 1];
    return product;
  }

  // Adds the derivatives of the sum over the corners of weight * dot.
  CRAD_ALWAYS_INLINE void add_slopes(const FloatLanes (&dot)[count],
                                     FloatLanes (&sum)[ndim]) const {
#pragma GCC unroll 4
    for (int differentiated = 0; differentiated < ndim; ++differentiated) {
      FloatLanes left[count];
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) left[k] = dot[k];
#pragma GCC unroll 4
      for (int axis = last; axis >= 0; --axis)
#pragma GCC unroll 8
        for (int k = 0; k < 1 << axis; ++k) {
          const FloatLanes a = left[k], b = left[k + (1 << axis)];
          left[k] = axis == differentiated ? slope[axis] * (b - a)
                                           : multiply_add(b, along[axis][1], a * along[axis][0]);
        }
      sum[differentiated] += left[0];
    }
  }
};

}  // namespace
}  // namespace crad
