// The loops over several grids that are sampled at the same points. Points are the lanes of
// vectors (level_corners.h). A block of them (level_blocks.h) is located in one grid after the
// other, and the rows of its results, or of their gradients, are those of all grids.
#pragma once

#include "level_blocks.h"
#include "level_corners.h"

namespace crad {
namespace {

// ---- channels ----
//
// `few`: 1 or 2 channels, which are read of both corners of a row at once; 0: any number of them,
// which are read corner by corner, four, two and one at a time.

// Calls f(c, N), N a constant, for the channels [c, c + N) of all.
template <class F>
CRAD_INLINE void for_each_group(int64_t channels, F f) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) f(c, std::integral_constant<int, 4>());
  if (channels & 2) f(c, std::integral_constant<int, 2>()), c += 2;
  if (channels & 1) f(c, std::integral_constant<int, 1>());
}

// The entries of both corners of all rows, those of a row side by side.
template <int few, int ndim>
CRAD_INLINE void read_rows(const Level<ndim>& level, const LevelCorners<ndim>& corners,
                           FloatLanes (&entry)[LevelCorners<ndim>::rows][2 * few]) {
  uint32_t at[kLanes];
  corners.offsets(at);
#pragma GCC unroll 8
  for (int row = 0; row < corners.rows; ++row)
    gather(level.values + level.step[row], at, entry[row]);
}

// ---- the points of a block in a level ----

// Prefetches the rows of all corners. Null: of none.
template <int ndim>
CRAD_INLINE void prefetch(const float* grid, const Level<ndim>& level,
                          const LevelCorners<ndim>& corners) {
  if (!grid) return;
  uint32_t at[kLanes];
  corners.offsets(at);
#pragma GCC unroll 8
  for (int row = 0; row < corners.rows; ++row)
    for (int i = 0; i < kLanes; ++i) __builtin_prefetch(grid + level.step[row] + at[i]);
}

// Calls f(at, corners) for every vector of points; `at` is the number of its first point in the
// block. In 3-D and 4-D, all vectors of a batch are located first. If the points are sorted, which
// they are where neighbours do not read near by, their rows of `values` and `grad_values` are then
// prefetched. Null: not used.
template <int ndim, class F>
CRAD_INLINE void for_each_vector_of_points(const LevelBlock<ndim>& block, const Level<ndim>& level,
                                           const Range& range, const float* values,
                                           const float* grad_values, F f) {
  if constexpr (ndim < 3) {
    for (int at = 0; at < block.points; at += kLanes) f(at, block.corners(level, at));
  } else {
    constexpr int vectors = kBatch / kLanes;
    for (int first = 0; first < block.points; first += kBatch) {
      LevelCorners<ndim> corners[vectors];
      for (int v = 0; v < vectors; ++v) {
        corners[v] = block.corners(level, first + v * kLanes);
        if (!range.order) continue;
        prefetch(values, level, corners[v]);
        prefetch(grad_values, level, corners[v]);
      }
      for (int v = 0; v < vectors; ++v) f(first + v * kLanes, corners[v]);
    }
  }
}

// ---- the sample ----

template <int ndim, int few>
CRAD_INLINE void blend(const Level<ndim>& level, const LevelCorners<ndim>& corners, float* to) {
  constexpr int rows = LevelCorners<ndim>::rows;
  if constexpr (few > 0) {
    FloatLanes entry[rows][2 * few], total[few];
    read_rows<few>(level, corners, entry);
    for (int c = 0; c < few; ++c) total[c] = corners.beginning;
#pragma GCC unroll 16
    for (int k = 0; k < corners.count; ++k) {
      const FloatLanes weight = corners.weight(k);
      const LaneMask inside = corners.inside(k);
      for (int c = 0; c < few; ++c)
        total[c] = multiply_add(inside, entry[k % rows][k / rows * few + c], weight, total[c]);
    }
    for (int c = 0; c < few; ++c) store_lanes(to + c * kBlock, total[c]);
  } else {
    uint32_t at[kLanes];
    corners.offsets(at);
    for_each_group(level.channels, [&](int64_t first, auto number) __attribute__((always_inline)) {
      FloatLanes total[number];
      for (int c = 0; c < number; ++c) total[c] = corners.beginning;
#pragma GCC unroll 16
      for (int k = 0; k < corners.count; ++k) {
        FloatLanes entry[number];
        gather(level.values + level.step[k] + first, at, entry);
        const FloatLanes weight = corners.weight(k);
        const LaneMask inside = corners.inside(k);
        for (int c = 0; c < number; ++c)
          total[c] = multiply_add(inside, entry[c], weight, total[c]);
      }
      for (int c = 0; c < number; ++c) store_lanes(to + (first + c) * kBlock, total[c]);
    });
  }
}

template <int ndim, int few>
void sample_levels(const Levels& levels, const Range& range, float* output, bool streaming) {
  const int64_t channels = levels.level[0].channels, row = levels.number * channels;
  const float* const coords = static_cast<const float*>(levels.level[0].coords);
  Buffer<Level<ndim>> each(levels.number);
  for (int64_t l = 0; l < levels.number; ++l) each[l].set(levels.level[l]);
  LevelBlock<ndim> block;
  Columns results(row);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBlock) {
    block.take(levels.level[0], range, p);
    for (int64_t l = 0; l < levels.number; ++l) {
      prefetch_rows(coords, ndim, range, p + kBlock, l, levels.number);
      const Level<ndim> level = each[l];
      float* const to = results[l * channels];
      for_each_vector_of_points(
          block, level, range, level.values, nullptr,
          [&](int at, const LevelCorners<ndim>& corners)
              __attribute__((always_inline)) { blend<ndim, few>(level, corners, to + at); });
    }
    results.store(output, range, p, block, streaming);
  }
  if (streaming) finish_streaming();
}

// ---- what a vector of points adds to the gradient of coords ----

// Adds to the dot products of the gradient with the entries of the corners.
template <int ndim, int few>
CRAD_INLINE void add_dots(const Level<ndim>& level, const LevelCorners<ndim>& corners,
                          const float* grad, FloatLanes (&dot)[LevelCorners<ndim>::count]) {
  constexpr int rows = LevelCorners<ndim>::rows;
  if constexpr (few > 0) {
    FloatLanes entry[rows][2 * few];
    read_rows<few>(level, corners, entry);
#pragma GCC unroll 16
    for (int k = 0; k < corners.count; ++k)
      for (int c = 0; c < few; ++c)
        dot[k] = multiply_add(corners.inside(k), load_lanes(grad + c * kBlock),
                              entry[k % rows][k / rows * few + c], dot[k]);
  } else {
    uint32_t at[kLanes];
    corners.offsets(at);
    for_each_group(level.channels, [&](int64_t first, auto number) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int k = 0; k < corners.count; ++k) {
        FloatLanes entry[number];
        gather(level.values + level.step[k] + first, at, entry);
        for (int c = 0; c < number; ++c)
          dot[k] = multiply_add(corners.inside(k), load_lanes(grad + (first + c) * kBlock),
                                entry[c], dot[k]);
      }
    });
  }
}

// Adds to the columns of the components; if `begins`, to 0.
template <int ndim, int few>
CRAD_INLINE void add_slopes(const Level<ndim>& level, const LevelCorners<ndim>& corners,
                            const float* grad, bool begins, float* columns) {
  FloatLanes dot[LevelCorners<ndim>::count], sum[ndim];
#pragma GCC unroll 16
  for (int k = 0; k < corners.count; ++k) dot[k] = corners.beginning;
  add_dots<ndim, few>(level, corners, grad, dot);
  // The components come in the reverse order of the axes.
  for (int axis = 0; axis < ndim; ++axis)
    sum[axis] = begins ? FloatLanes{} : load_lanes(columns + (ndim - 1 - axis) * kBlock);
  corners.add_slopes(dot, sum);
  for (int axis = 0; axis < ndim; ++axis)
    store_lanes(columns + (ndim - 1 - axis) * kBlock, sum[axis]);
}

// ---- and to that of values ----

#if CRAD_VECTOR_BYTES > 16
// Adds the first two of four numbers.
CRAD_INLINE void add_pair(float* to, __m128 addend) {
  __m128i* const at = reinterpret_cast<__m128i*>(to);
  const __m128 sum = _mm_add_ps(_mm_castsi128_ps(_mm_loadl_epi64(at)), addend);
  _mm_storel_epi64(at, _mm_castps_si128(sum));
}
#endif

// Adds, at the offset of every lane, N numbers to those that lie there and behind. Neighbouring
// lanes are not taken one after the other: they often add to the same entries, and what has just
// been stored in pieces takes long to be read.
template <int N>
CRAD_INLINE void add_at(float* base, const uint32_t (&at)[kLanes], const FloatLanes (&addend)[N]) {
#if CRAD_VECTOR_BYTES > 16
  if constexpr (N == 4) {
    // In each quarter the lanes of four points become rows of four channels.
    const auto a = (decltype(CRAD_INTRINSIC(setzero_ps)()))addend[0];
    const auto b = (decltype(a))addend[1], c = (decltype(a))addend[2], d = (decltype(a))addend[3];
    const auto ab = CRAD_INTRINSIC(unpacklo_ps)(a, b), ab2 = CRAD_INTRINSIC(unpackhi_ps)(a, b);
    const auto cd = CRAD_INTRINSIC(unpacklo_ps)(c, d), cd2 = CRAD_INTRINSIC(unpackhi_ps)(c, d);
    FloatLanes rows[4] = {(FloatLanes)CRAD_INTRINSIC(shuffle_ps)(ab, cd, 0x44),
                          (FloatLanes)CRAD_INTRINSIC(shuffle_ps)(ab, cd, 0xEE),
                          (FloatLanes)CRAD_INTRINSIC(shuffle_ps)(ab2, cd2, 0x44),
                          (FloatLanes)CRAD_INTRINSIC(shuffle_ps)(ab2, cd2, 0xEE)};
    asm("" : "+m"(rows));  // to be loaded from there
    for (int first = 0; first < 4; ++first)
      for (int i = first; i < kLanes; i += 4) {
        float* const to = base + at[i];
        const __m128 row = _mm_loadu_ps(reinterpret_cast<const float*>(&rows[first]) + i - first);
        add_pair(to, row);
        add_pair(to + 2, _mm_movehl_ps(row, row));
      }
    return;
  }
#endif
  float lanes[N][kLanes];
  for (int n = 0; n < N; ++n) store_lanes(lanes[n], addend[n]);
  constexpr int apart = 4;
  for (int first = 0; first < apart; ++first)
    for (int i = first; i < kLanes; i += apart)
      for (int n = 0; n < N; ++n) base[at[i] + n] += lanes[n][i];
}

template <int ndim, int few>
CRAD_INLINE void add_products(float* grid, const Level<ndim>& level,
                              const LevelCorners<ndim>& corners, const float* grad) {
  constexpr int rows = LevelCorners<ndim>::rows;
  uint32_t at[kLanes];
  corners.offsets(at);
  if constexpr (few > 0) {
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      FloatLanes product[2 * few];
      for (int tap = 0; tap < 2; ++tap)
        for (int c = 0; c < few; ++c)
          product[tap * few + c] =
              only(corners.inside(row + tap * rows),
                   corners.weight(row + tap * rows) * load_lanes(grad + c * kBlock));
      add_at(grid + level.step[row], at, product);
    }
  } else {
    for_each_group(level.channels, [&](int64_t first, auto number) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int k = 0; k < corners.count; ++k) {
        FloatLanes product[number];
        for (int c = 0; c < number; ++c)
          product[c] =
              only(corners.inside(k), corners.weight(k) * load_lanes(grad + (first + c) * kBlock));
        add_at(grid + level.step[k] + first, at, product);
      }
    });
  }
}

// ---- the gradients ----

template <int ndim, int few>
void gradients(const Levels& levels, const LevelParts& parts, int64_t first, int64_t last,
               const Range& range, const float* grad_output, const LevelGradients& to) {
  const int64_t channels = levels.level[0].channels, row = levels.number * channels;
  const int64_t begin = parts.begin(first), count = parts.end[last - 1] - begin;
  const float* const coords = static_cast<const float*>(levels.level[0].coords);
  const bool wants_coords = to.coords || to.sums;
  Buffer<Level<ndim>> each(levels.number);
  for (int64_t l = 0; l < levels.number; ++l) each[l].set(levels.level[l]);
  LevelBlock<ndim> block;
  Columns grads(row), total(ndim), others(ndim);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBlock) {
    block.take(levels.level[0], range, p);
    grads.fetch(grad_output, range, p, block);
    for (int64_t part = first; part < last; ++part) {
      float* const sums = to.sums         ? to.sums + sums_of_part<ndim>(part, range, p)
                          : part == first ? total[0]
                                          : others[0];
      for (int64_t i = parts.begin(part); i < parts.end[part]; ++i) {
        prefetch_rows(coords, ndim, range, p + kBlock, i - begin, count);
        prefetch_rows(grad_output, row, range, p + kBlock, i - begin, count);
        const int64_t l = parts.level[i];
        const Level<ndim> level = each[l];
        const float* const grad = grads[l * channels];
        const bool begins = i == parts.begin(part);
        float* const grad_values = to.values ? to.values[l] : nullptr;
        for_each_vector_of_points(
            block, level, range, wants_coords ? level.values : nullptr, grad_values,
            [&](int at, const LevelCorners<ndim>& corners) __attribute__((always_inline)) {
              if (wants_coords) add_slopes<ndim, few>(level, corners, grad + at, begins, sums + at);
              if (grad_values) add_products<ndim, few>(grad_values, level, corners, grad + at);
            });
      }
      if (to.coords && part != first) total.add(others[0]);
    }
    if (to.coords) total.store(to.coords, range, p, block, false);
  }
}

template <int ndim>
void add_parts(int64_t parts, const Range& range, int64_t first, int64_t last, const float* sums,
               float* grad_coords) {
  LevelBlock<ndim> block;
  Columns total(ndim);
  for (int64_t i = first; i < last; ++i) {
    const int64_t p = range.point_begin + i * kBlock;
    block.number(range, p);
    memcpy(total[0], sums + sums_of_part<ndim>(0, range, p), ndim * kBlock * sizeof(float));
    for (int64_t part = 1; part < parts; ++part)
      total.add(sums + sums_of_part<ndim>(part, range, p));
    total.store(grad_coords, range, p, block, false);
  }
}

// ---- from run-time shapes to compile-time ones ----

template <class F>
CRAD_INLINE void with_shape(const Levels& levels, F f) {
  static_assert(kMostLevelAxes == 4, "those of with_small");
  with_small(levels.level[0].ndim, [&](auto ndim) {
    switch (levels.level[0].channels) {
      case 1:
        return f(ndim, std::integral_constant<int, 1>());
      case 2:
        return f(ndim, std::integral_constant<int, 2>());
      default:
        return f(ndim, std::integral_constant<int, 0>());
    }
  });
}

void sample_levels(const Levels& levels, const Range& range, float* output, bool streaming) {
  with_shape(levels, [&](auto ndim, auto few) {
    sample_levels<ndim, few>(levels, range, output, streaming);
  });
}

void gradients(const Levels& levels, const LevelParts& parts, int64_t first, int64_t last,
               const Range& range, const float* grad_output, const LevelGradients& to) {
  with_shape(levels, [&](auto ndim, auto few) {
    gradients<ndim, few>(levels, parts, first, last, range, grad_output, to);
  });
}

void add_parts(const Levels& levels, int64_t parts, const Range& range, int64_t first, int64_t last,
               const float* sums, float* grad_coords) {
  with_small(levels.level[0].ndim,
             [&](auto ndim) { add_parts<ndim>(parts, range, first, last, sums, grad_coords); });
}

}  // namespace

const LevelKernels CRAD_LEVEL_KERNELS = {sample_levels, gradients, add_parts};

}  // namespace crad
