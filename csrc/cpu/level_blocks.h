// Blocks of points, and columns of numbers of them, for several grids: see level_loops.h.
#pragma once

#include <algorithm>
#include <cstring>

#include "level_corners.h"
#include "transpose.h"

namespace crad {
namespace {

constexpr int kBlock = kLevelBlock;  // points
static_assert(kBlock % kBatch == 0);

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

  // Takes the numbers of the points alone.
  void number(const Range& range, int64_t first) {
    points = static_cast<int>(std::min<int64_t>(range.point_end - first, kBlock));
    for (int i = 0; i < points; ++i) point[i] = range.order ? range.order[first + i] : first + i;
  }

  // The corners of the vector of points from number `at` of the block on.
  CRAD_ALWAYS_INLINE LevelCorners<ndim> corners(const Level<ndim>& level, int at) const {
    FloatLanes lanes[ndim];
    for (int axis = 0; axis < ndim; ++axis) lanes[axis] = load_lanes(coord[axis] + at);
    LevelCorners<ndim> corners;
    corners.locate(level, lanes);
    return corners;
  }
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

// Where, in those of all parts, the sums of a part begin that are of the block from number `first`
// of a range on.
template <int ndim>
CRAD_INLINE int64_t sums_of_part(int64_t part, const Range& range, int64_t first) {
  const int64_t blocks = ceil_div(range.point_end - range.point_begin, kBlock);
  return (part * blocks + (first - range.point_begin) / kBlock) * ndim * kBlock;
}

// Columns of a block, with a float for every point: the channels of all levels, or components.
class Columns {
 public:
  explicit Columns(int64_t number)
      : number_(number), columns_(number * (kBlock / kBatch)), rows_(kBlock * number) {}
  float* operator[](int64_t column) { return columns_[column * (kBlock / kBatch)].at; }

  // Adds so many columns, one behind the other.
  void add(const float* from) {
    float* const to = columns_[0].at;
    for (int64_t at = 0; at < number_ * kBlock; at += kLanes)
      store_lanes(to + at, load_lanes(to + at) + load_lanes(from + at));
  }

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

}  // namespace
}  // namespace crad
