// The loops over several grids that are sampled at the same points. Points are the lanes of
// vectors. A block of them is located in one grid after the other, and the rows of its results, or
// of their gradients, are those of all grids.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "levels.h"
#include "locate.h"
#include "transpose.h"

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

template <int ndim>
struct LevelAxes {
  struct {
    Placement<float> placement;
    float last;  // first of two entries
    int32_t size, stride;
    Padding padding;
    bool align_corners;
  } along[ndim];

  void set(const Problem& level) {
    for (int axis = 0; axis < ndim; ++axis) {
      const int64_t size = level.size[axis];
      const bool align_corners = level.align_corners[axis];
      along[axis] = {placement_of<float>(size, align_corners, level.unit),
                     static_cast<float>(size - 2),
                     static_cast<int32_t>(size),
                     static_cast<int32_t>(level.stride[axis]),
                     level.padding[axis],
                     align_corners};
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

  CRAD_ALWAYS_INLINE void locate(const LevelAxes<ndim>& axes, const FloatLanes (&coord)[ndim]) {
    offset = IntLanes{};
    beginning = FloatLanes{};
#pragma GCC unroll 4
    for (int axis = 0; axis < ndim; ++axis) {
      const auto axis_of = axes.along[axis];
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

// From the lowest corner's offset to those of the others.
template <int ndim>
struct LevelSteps {
  int64_t of[1 << ndim];

  explicit LevelSteps(const LevelAxes<ndim>& axes) {
    for (int k = 0; k < 1 << ndim; ++k) {
      of[k] = 0;
      for (int axis = 0; axis < ndim; ++axis) of[k] += (k >> axis & 1) * axes.along[axis].stride;
    }
  }
};

// ---- blocks of points ----

constexpr int kBlock = 4 * kBatch;  // points

template <int ndim>
struct LevelBlock {
  alignas(kLine) float coord[ndim][kBlock];  // jittered, along the axes
  int64_t point[kBlock];                     // their numbers
  int points;

  // Takes the points from number `first` of a range on; what is behind them repeats one of them.
  void take(const Problem& problem, const Range& range, int64_t first) {
    points = static_cast<int>(std::min<int64_t>(range.point_end - first, kBlock));
    Batch<float> batch;
    for (int at = 0; at < points; at += kBatch) {
      fetch(problem, range, first + at, batch);
      memcpy(point + at, batch.point, sizeof(batch.point));
      for (int axis = 0; axis < ndim; ++axis)
        memcpy(coord[axis] + at, batch.coord[axis], kBatch * sizeof(float));
    }
  }

  CRAD_ALWAYS_INLINE void coords(int at, FloatLanes (&lanes)[ndim]) const {
    for (int axis = 0; axis < ndim; ++axis) lanes[axis] = load_lanes(coord[axis] + at);
  }
};

template <int ndim>
class AllAxes {
 public:
  explicit AllAxes(const Levels& levels) : axes_(levels.number) {
    for (int64_t l = 0; l < levels.number; ++l) axes_[l].set(levels.level[l]);
  }
  const LevelAxes<ndim>& operator[](int64_t level) const { return axes_[level]; }

 private:
  Buffer<LevelAxes<ndim>> axes_;
};

// Asks for the rows of a share of the points of the block from number `first` on, where these are
// in an order of their own: a level's time hides what one share takes. (Inlined by force:
// GCC drops calls of a function that does nothing else.)
CRAD_INLINE void prefetch_rows(const float* rows, int64_t width, const Range& range, int64_t first,
                               int64_t share, int64_t shares) {
  if (!range.order) return;
  const int64_t end = std::min<int64_t>(range.point_end, first + kBlock);
  for (int64_t p = first + share; p < end; p += shares)
    for (int64_t at = 0; at < width; at += kLine / sizeof(float))
      __builtin_prefetch(rows + range.order[p] * width + at);
}

// Columns of a block, with a float for every point: the channels of all levels, or components.
class Columns {
 public:
  explicit Columns(int64_t number)
      : number_(number), columns_(number * (kBlock / kBatch)), rows_(kBlock * number) {}
  float* operator[](int64_t column) { return columns_[column * (kBlock / kBatch)].at; }

  // Takes the rows of the block from number `first` of a range on, and 0 behind them.
  template <int ndim>
  void fetch(const float* from, const Range& range, int64_t first, const LevelBlock<ndim>& block) {
    const int points = block.points;
    const float* rows = from + first * number_;
    if (range.order) {
      for (int i = 0; i < points; ++i)
        memcpy(rows_.get() + i * number_, from + block.point[i] * number_, number_ * sizeof(float));
      rows = rows_.get();
    }
    transpose_elements(rows, number_, points, number_, columns_[0].at, int64_t{kBlock});
    if (points == kBlock) return;
    for (int64_t c = 0; c < number_; ++c) std::fill((*this)[c] + points, (*this)[c] + kBlock, 0.0f);
  }

  // Puts them where the rows of the points belong; if `streaming`, past the caches.
  template <int ndim>
  void store(float* to, const Range& range, int64_t first, const LevelBlock<ndim>& block,
             bool streaming) {
    const int points = block.points;
    if (!range.order && !streaming)
      return transpose_elements(columns_[0].at, int64_t{kBlock}, number_, points,
                                to + first * number_, number_);
    transpose_elements(columns_[0].at, int64_t{kBlock}, number_, points, rows_.get(), number_);
    for (int i = 0; i < points; ++i) {
      const float* const from = rows_.get() + i * number_;
      float* const row = to + block.point[i] * number_;
      if (streaming)
        for_each_vector<float, true>(
            0, number_, [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
              store(row + c, load(from + c));
            });
      else
        memcpy(row, from, number_ * sizeof(float));
    }
  }

 private:
  const int64_t number_;
  Buffer<PerPoint<float>> columns_;
  Buffer<float> rows_;
};

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
CRAD_INLINE void read_rows(const float* grid, const LevelCorners<ndim>& corners,
                           const LevelSteps<ndim>& steps,
                           FloatLanes (&entry)[LevelCorners<ndim>::rows][2 * few]) {
#pragma GCC unroll 8
  for (int row = 0; row < corners.rows; ++row)
    gather(grid + steps.of[row], corners.offset, entry[row]);
}

// ---- the sample ----

template <int ndim, int few>
CRAD_INLINE void blend(const float* grid, int64_t channels, const LevelCorners<ndim>& corners,
                       const LevelSteps<ndim>& steps, float* to) {
  constexpr int rows = LevelCorners<ndim>::rows;
  if constexpr (few > 0) {
    FloatLanes entry[rows][2 * few], total[few];
    read_rows<few>(grid, corners, steps, entry);
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
    for_each_group(channels, [&](int64_t first, auto number) __attribute__((always_inline)) {
      FloatLanes total[number];
      for (int c = 0; c < number; ++c) total[c] = corners.beginning;
#pragma GCC unroll 16
      for (int k = 0; k < corners.count; ++k) {
        FloatLanes entry[number];
        gather(grid + steps.of[k] + first, corners.offset, entry);
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
  const AllAxes<ndim> axes(levels);
  LevelBlock<ndim> block;
  Columns results(row);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBlock) {
    block.take(levels.level[0], range, p);
    for (int64_t l = 0; l < levels.number; ++l) {
      prefetch_rows(coords, ndim, range, p + kBlock, l, levels.number);
      const LevelAxes<ndim> level_axes = axes[l];
      const LevelSteps<ndim> steps(level_axes);
      const float* const grid = static_cast<const float*>(levels.level[l].values);
      float* const to = results[l * channels];
      for (int at = 0; at < block.points; at += kLanes) {
        FloatLanes coord[ndim];
        block.coords(at, coord);
        LevelCorners<ndim> corners;
        corners.locate(level_axes, coord);
        blend<ndim, few>(grid, channels, corners, steps, to + at);
      }
    }
    results.store(output, range, p, block, streaming);
  }
  if (streaming) finish_streaming();
}

// ---- the gradient of coordinates ----

// Adds to the dot products of the gradient with the entries of the corners.
template <int ndim, int few>
CRAD_INLINE void add_dots(const float* grid, int64_t channels, const LevelCorners<ndim>& corners,
                          const LevelSteps<ndim>& steps, const float* grad,
                          FloatLanes (&dot)[LevelCorners<ndim>::count]) {
  constexpr int rows = LevelCorners<ndim>::rows;
  if constexpr (few > 0) {
    FloatLanes entry[rows][2 * few];
    read_rows<few>(grid, corners, steps, entry);
#pragma GCC unroll 16
    for (int k = 0; k < corners.count; ++k)
      for (int c = 0; c < few; ++c)
        dot[k] = multiply_add(corners.inside(k), load_lanes(grad + c * kBlock),
                              entry[k % rows][k / rows * few + c], dot[k]);
  } else {
    for_each_group(channels, [&](int64_t first, auto number) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int k = 0; k < corners.count; ++k) {
        FloatLanes entry[number];
        gather(grid + steps.of[k] + first, corners.offset, entry);
        for (int c = 0; c < number; ++c)
          dot[k] = multiply_add(corners.inside(k), load_lanes(grad + (first + c) * kBlock),
                                entry[c], dot[k]);
      }
    });
  }
}

template <int ndim, int few>
void coords_gradient(const Levels& levels, const Range& range, const float* grad_output,
                     float* grad_coords) {
  const int64_t channels = levels.level[0].channels, row = levels.number * channels;
  const float* const coords = static_cast<const float*>(levels.level[0].coords);
  const AllAxes<ndim> axes(levels);
  LevelBlock<ndim> block;
  Columns grads(row), sums(ndim);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBlock) {
    block.take(levels.level[0], range, p);
    grads.fetch(grad_output, range, p, block);
    for (int64_t l = 0; l < levels.number; ++l) {
      prefetch_rows(coords, ndim, range, p + kBlock, l, levels.number);
      prefetch_rows(grad_output, row, range, p + kBlock, l, levels.number);
      const LevelAxes<ndim> level_axes = axes[l];
      const LevelSteps<ndim> steps(level_axes);
      const float* const grid = static_cast<const float*>(levels.level[l].values);
      const float* const grad = grads[l * channels];
      for (int at = 0; at < block.points; at += kLanes) {
        FloatLanes coord[ndim], dot[LevelCorners<ndim>::count], sum[ndim];
        block.coords(at, coord);
        LevelCorners<ndim> corners;
        corners.locate(level_axes, coord);
#pragma GCC unroll 16
        for (int k = 0; k < corners.count; ++k) dot[k] = corners.beginning;
        add_dots<ndim, few>(grid, channels, corners, steps, grad + at, dot);
        // The components come in the reverse order of the axes.
        for (int axis = 0; axis < ndim; ++axis)
          sum[axis] = l == 0 ? FloatLanes{} : load_lanes(sums[ndim - 1 - axis] + at);
        corners.add_slopes(dot, sum);
        for (int axis = 0; axis < ndim; ++axis) store_lanes(sums[ndim - 1 - axis] + at, sum[axis]);
      }
    }
    sums.store(grad_coords, range, p, block, false);
  }
}

// ---- the gradient of values ----

// Adds, at the offset of every lane, N numbers to those that lie there and behind. Neighbouring
// lanes are not taken one after the other: they often add to the same entries, and what has just
// been stored in pieces takes long to be read.
template <int N>
CRAD_INLINE void add_at(float* base, const IntLanes& offset, const FloatLanes (&addend)[N]) {
  int64_t at[kLanes];
  offsets_apart(offset, at);
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
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), row));
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
CRAD_INLINE void add_products(float* grid, int64_t channels, const LevelCorners<ndim>& corners,
                              const LevelSteps<ndim>& steps, const float* grad) {
  constexpr int rows = LevelCorners<ndim>::rows;
  if constexpr (few > 0) {
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      FloatLanes product[2 * few];
      for (int tap = 0; tap < 2; ++tap)
        for (int c = 0; c < few; ++c)
          product[tap * few + c] =
              only(corners.inside(row + tap * rows),
                   corners.weight(row + tap * rows) * load_lanes(grad + c * kBlock));
      add_at(grid + steps.of[row], corners.offset, product);
    }
  } else {
    for_each_group(channels, [&](int64_t first, auto number) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int k = 0; k < corners.count; ++k) {
        FloatLanes product[number];
        for (int c = 0; c < number; ++c)
          product[c] =
              only(corners.inside(k), corners.weight(k) * load_lanes(grad + (first + c) * kBlock));
        add_at(grid + steps.of[k] + first, corners.offset, product);
      }
    });
  }
}

template <int ndim, int few>
void values_gradient(const Levels& levels, const int64_t* some, int64_t count, const Range& range,
                     const float* grad_output, float* const* grad_values) {
  const int64_t channels = levels.level[0].channels, row = levels.number * channels;
  const float* const coords = static_cast<const float*>(levels.level[0].coords);
  const AllAxes<ndim> axes(levels);
  LevelBlock<ndim> block;
  Columns grads(row);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBlock) {
    block.take(levels.level[0], range, p);
    grads.fetch(grad_output, range, p, block);
    for (int64_t i = 0; i < count; ++i) {
      prefetch_rows(coords, ndim, range, p + kBlock, i, count);
      prefetch_rows(grad_output, row, range, p + kBlock, i, count);
      const int64_t l = some[i];
      const LevelAxes<ndim> level_axes = axes[l];
      const LevelSteps<ndim> steps(level_axes);
      const float* const grad = grads[l * channels];
      for (int at = 0; at < block.points; at += kLanes) {
        FloatLanes coord[ndim];
        block.coords(at, coord);
        LevelCorners<ndim> corners;
        corners.locate(level_axes, coord);
        add_products<ndim, few>(grad_values[l], channels, corners, steps, grad + at);
      }
    }
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

void coords_gradient(const Levels& levels, const Range& range, const float* grad_output,
                     float* grad_coords) {
  with_shape(levels, [&](auto ndim, auto few) {
    coords_gradient<ndim, few>(levels, range, grad_output, grad_coords);
  });
}

void values_gradient(const Levels& levels, const int64_t* some, int64_t count, const Range& range,
                     const float* grad_output, float* const* grad_values) {
  with_shape(levels, [&](auto ndim, auto few) {
    values_gradient<ndim, few>(levels, some, count, range, grad_output, grad_values);
  });
}

}  // namespace

const LevelKernels CRAD_KERNELS = {sample_levels, coords_gradient, values_gradient};

}  // namespace crad
