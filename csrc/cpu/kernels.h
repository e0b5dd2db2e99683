// The CPU kernels of one instruction set, as a table of functions over ranges of points and
// channels. Those of a forward pass are independent of each other. In a backward pass, ranges that
// add to the same entries (such as neighbouring bands) must not run at the same time, and must
// follow each other in a fixed order for the same bits.
#pragma once

#include <cstdint>

#include "../core/problem.h"

namespace crad {

constexpr int kLine = 64;  // bytes of a cache line: a vector that lies in two takes twice as long
constexpr int64_t kFewChannels = 7;  // more fill a vector's lanes well enough themselves
constexpr int64_t kMostPlanes = 8;   // up to so many are read one by one, and not copied to rows

// Half-open ranges; the points of one range lie in one batch item.
struct Range {
  int64_t point_begin, point_end;
  int64_t channel_begin, channel_end;
  // The range's points are order[point_begin] to order[point_end - 1]; null: the numbers
  // themselves.
  const int64_t* order = nullptr;
};

// Where a forward pass puts its results.
struct Output {
  void* data;              // (points, channels), those of the points from number `first_point` on
  int64_t row;             // elements from a point to the next
  bool streaming = false;  // past the caches, if the rows are aligned for that
  bool planes = false;     // (grids, channels, points of a grid) instead, those of all points
  int64_t first_point = 0, first_channel = 0;
};

// A band is a run of 2^shift entries along an axis, and of 2^second_shift along a second one. A
// point belongs to the band of the lowest entry that it reads; those that read across the end of a
// grid that repeats itself, to a last band of their own along the first axis, the seam.
struct Bands {
  int axis, second;  // -1: there is no second
  int shift, second_shift;
  int64_t number, second_number;
  bool seam;  // whether the last of `number` is one
};

// A part of the backward pass; null: not wanted.
struct Gradients {
  const void* grad_output;                // (points, channels), never null
  const RowStrides* grad_output_strides;  // null: contiguous
  // Of the range's grid, of the accumulator's type. Where grad_coords is wanted, too, its entries
  // lie as those of the values do.
  void* grad_values = nullptr;
  void* grad_coords = nullptr;  // (points, ndim), of coord_type: the share of the range's channels
  bool add_coords = false;      // to what is there
  // Where the lanes of vectors are points: the entries along the first axis that are added to. Not
  // all of them only where grad_coords is not wanted.
  int64_t first_row = 0, end_row = INT64_MAX;
};

// ---- several grids, all sampled at the same points: see levels.cpp ----

constexpr int kLevelBlock = 128;  // points, which are located in one level after the other

// Grids of float32, each a call of its own whose points and options are those of all. They are
// dense, have two entries or more along every axis, and no tap is moved by its padding; the mode is
// linear.
struct Levels {
  const Problem* level;
  int64_t number;
};

// All levels, in parts for threads. The gradient of coords is the sum of the parts' sums, whoever
// takes them.
struct LevelParts {
  const int64_t* level;  // their numbers, part by part
  const int64_t* end;    // of each part, in `level`
  int64_t number;

  int64_t begin(int64_t part) const { return part == 0 ? 0 : end[part - 1]; }
};

// Where gradients go. Those that are not wanted are null.
struct LevelGradients {
  float* const* values;  // of each level; it is added to
  float* coords;         // rows of points
  // Instead of `coords`: for each part and each block of the range, `ndim` columns with a float for
  // every point, which are the part's sums.
  float* sums;
};

// The rows of a sample hold the channels of all levels, one level after the other.
struct LevelKernels {
  // `streaming`: past the caches, for rows that are aligned for that.
  void (*sample)(const Levels&, const Range&, float* output, bool streaming);
  // Of the levels of some parts, from `first` to the one before `last`.
  void (*gradients)(const Levels&, const LevelParts&, int64_t first, int64_t last, const Range&,
                    const float* grad_output, const LevelGradients&);
  // Adds up the sums of all parts, of some blocks of the range.
  void (*add_parts)(const Levels&, int64_t parts, const Range&, int64_t first, int64_t last,
                    const float* sums, float* grad_coords);
};

// ---- the table ----

struct Kernels {
  void (*forward)(const Problem&, const Range&, const Output&);
  void (*backward)(const Problem&, const Range&, const Gradients&);
  // The first and the last entry along every axis that the points of a range may read, in bounds,
  // where the lanes of vectors are points.
  void (*bounds)(const Problem&, const Range&, int64_t* low, int64_t* high);
  // The part, band * second_number + second band, of the lowest entry that each point reads.
  void (*locate_parts)(const Problem&, const Bands&, const Range&, int32_t* part);
  // Sums the first `count` elements of `number` arrays of the accumulator's type that lie `stride`
  // apart, in order.
  void (*sum)(ValueType, const void* parts, int64_t number, int64_t stride, void* to,
              int64_t count);
  // from[i * from_stride + k] to to[k * to_stride + i] for i < rows, k < columns.
  void (*transpose)(int64_t element_bytes, const void* from, int64_t from_stride, int64_t rows,
                    int64_t columns, void* to, int64_t to_stride);
  const LevelKernels* levels;
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;
extern const LevelKernels level_kernels_baseline, level_kernels_avx2, level_kernels_avx512;

// Those that this process uses, chosen at the first call.
const Kernels& kernels();

}  // namespace crad
