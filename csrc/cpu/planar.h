// The forward loop for values that are planes, one of each of a few channels: the lanes of a vector
// are points, and both taps of a point along the last axis are read at once.
#pragma once

#include <cstring>

#include "point_rows.h"
#include "simd.h"
#include "transpose.h"

namespace crad {
namespace {

// The lanes, a bit each, that hold the number of an entry.
CRAD_INLINE uint32_t lanes_inside(IntLanes entry, int32_t size) {
#if CRAD_VECTOR_BYTES == 64
  return _mm512_cmplt_epu32_mask((__m512i)entry, _mm512_set1_epi32(size));
#else
  uint32_t lanes = 0;
  for (int i = 0; i < Vector<float>::width; ++i)
    lanes |= static_cast<uint32_t>(is_entry<int32_t>(entry[i], size)) << i;
  return lanes;
#endif
}

// In every lane the number of the entry, or of the one that is nearest to it.
CRAD_INLINE IntLanes kept_inside(IntLanes entry, int32_t size) {
  const IntLanes first = {}, last = first + (size - 1);
  entry = entry < first ? first : entry;
  return entry > last ? last : entry;
}

// What a vector of points reads of a plane. Corners that differ along the last axis alone make a
// row; they are numbered as in `Corners`: those on the left of all rows, then those on the right.
template <int ndim>
struct PlaneCorners {
  static constexpr int count = 1 << ndim, rows = count / 2;
  Vector<float> weight[count];
  uint32_t lanes[count];  // those whose entry lies inside the grid, a bit each
  IntLanes pair[rows];    // the first of two entries among which are those of the row
  IntLanes shift;         // from there to the left one

  // Of the points at these coordinates, from lane `at` on.
  template <Padding padding>
  void locate(const Problem& problem, const float (&coord)[kMaxDim][kBatch], int at) {
    constexpr Mode mode = Mode::linear;
    constexpr int width = Vector<float>::width, last = ndim - 1, taps = tap_count(mode);
    const bool align_corners = problem.align_corners;
    weight[0] = broadcast(1.0f);
    lanes[0] = ~uint32_t{0};
    pair[0] = IntLanes{};
#pragma GCC unroll 3
    for (int axis = 0; axis < ndim; ++axis) {
      const int32_t size = static_cast<int32_t>(problem.size[axis]);
      const int32_t stride = static_cast<int32_t>(problem.stride[axis]);
      float along[taps][width];
      int32_t entries[width];
#pragma GCC unroll 1  // or GCC unrolls what it is to make vector code of
      for (int i = 0; i < width; ++i) {
        const Index<float> raw = unpadded_index(coord[axis][at + i], size, align_corners);
        const float index = padded(raw, size, mode, padding, align_corners).at;
        const float base = base_of(index, mode);
        // NaN where the index is no place: so is the sum then, though all entries are outside.
        const float t = index - base;
        along[0][i] = tap_weight(mode, 0, 0, t, 0.0f);
        along[1][i] = tap_weight(mode, 0, 1, t, 0.0f);
        entries[i] = entry_at(base, size, taps);
      }
      IntLanes entry;
      memcpy(&entry, entries, sizeof(entry));
#pragma GCC unroll 4
      for (int k = 0; k < 1 << axis; ++k) {
        const int next = k + (1 << axis);
        weight[next].lanes = weight[k].lanes * load(along[1]).lanes;
        weight[k].lanes *= load(along[0]).lanes;
        lanes[next] = lanes[k] & lanes_inside(entry + 1, size);
        lanes[k] &= lanes_inside(entry, size);
        if (axis < last) {
          pair[next] = pair[k] + kept_inside(entry + 1, size) * stride;
          pair[k] += kept_inside(entry, size) * stride;
        } else {
          shift = entry - kept_inside(entry, size - 1);
          pair[k] += kept_inside(entry, size - 1);
        }
      }
    }
  }

  Vector<float> sum(const float* plane) const {
    Vector<float> entry[count];
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) read(plane, row, entry[row], entry[rows + row]);
    Vector<float> total = broadcast(0.0f);
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) total = multiply_add(entry[k], weight[k], total);
    return total;
  }

 private:
  // The entries of a row, 0 where there is none.
  void read(const float* plane, int row, Vector<float>& left, Vector<float>& right) const {
    const uint32_t in_left = lanes[row], in_right = lanes[rows + row];
#if CRAD_VECTOR_BYTES == 64
    const __m512i from = (__m512i)pair[row];
    // The instruction waits for the register that it fills, so that is cleared before; GCC would
    // leave this out if it knew that all lanes are gathered.
    __mmask8 all = 0xFF;
    asm("" : "+Yk"(all));
    const auto eight = [&](__m256i pairs) __attribute__((always_inline)) {
      return (__m512)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), all, pairs, plane, 4);
    };
    const __m512 low = eight(_mm512_castsi512_si256(from));
    const __m512 high = eight(_mm512_extracti64x4_epi64(from, 1));
    const IntLanes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    left = {(Vector<float>::Lanes)_mm512_maskz_permutex2var_ps(static_cast<__mmask16>(in_left), low,
                                                               (__m512i)(even + shift), high)};
    right = {(Vector<float>::Lanes)_mm512_maskz_permutex2var_ps(
        static_cast<__mmask16>(in_right), low, (__m512i)(even + shift + 1), high)};
#else
    left = right = broadcast(0.0f);
    for (int i = 0; i < Vector<float>::width; ++i) {
      const float* const entry = plane + int64_t{pair[row][i]} + shift[i];
      if (in_left >> i & 1) left.lanes[i] = entry[0];
      if (in_right >> i & 1) right.lanes[i] = entry[1];
    }
#endif
  }
};

template <Padding padding, int ndim>
void forward_planar(const Problem& problem, const Range& range, const Output& output) {
  const float* const grid = grid_of<float>(problem, range);
  const int64_t channels = problem.channels;
  float* const data = static_cast<float*>(output.data);
  const bool planes = output.planes || channels == 1;
  // Results of other grids' channels that lie before those of the range's points.
  const int64_t before =
      (channels - 1) * (range.point_begin / problem.points_per_grid) * problem.points_per_grid;
  const Range points_in_order{range.point_begin, range.point_end, 0, channels};
  Batch<float> batch;
  PerPoint<float> total[kMostPlanes];
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = fetch(problem, points_in_order, p, batch);
    float* const result = data + (planes ? before + p : (p - output.first_point) * channels);
    const bool direct = planes && points == kBatch;
    float* const to = direct ? result : total[0].at;
    const int64_t stride = direct ? problem.points_per_grid : kBatch;
    for (int at = 0; at < kBatch; at += Vector<float>::width) {
      PlaneCorners<ndim> corners;
      corners.template locate<padding>(problem, batch.coord, at);
      for (int64_t c = 0; c < channels; ++c)
        store(to + c * stride + at, corners.sum(grid + c * problem.channel_stride));
    }
    if (direct) continue;
    if (planes)
      for (int64_t c = 0; c < channels; ++c)
        memcpy(result + c * problem.points_per_grid, total[c].at, points * sizeof(float));
    else
      transpose_elements(total[0].at, kBatch, channels, points, result, channels);
  }
}

// The forward pass of a call whose values are planes.
inline void forward_planar(const Problem& problem, const Range& range, const Output& output) {
  with_padding(problem.padding, [&](auto padding) {
    with_small(problem.ndim, [&](auto ndim) {
      if constexpr (ndim <= 3)
        forward_planar<decltype(padding)::value, ndim>(problem, range, output);
    });
  });
}

}  // namespace
}  // namespace crad
