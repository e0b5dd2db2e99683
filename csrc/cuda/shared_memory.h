// How the shared memory of a block is laid out, where there is more in it than located points. Said
// here once: plans take the bytes, and kernels the offsets.
#pragma once

#include "plan.h"

namespace crad {

// Arrays that lie one after the other, each aligned.
struct Arrays {
  int64_t end = 0;    // of those so far
  int64_t bytes = 0;  // the same, at most: every point of a batch adds equally many
};

// Appends an array. Returns its offset.
CRAD_INLINE int64_t append(Arrays& arrays, int64_t bytes) {
  const int64_t offset = arrays.end;
  arrays.end += rounded_up(bytes);
  arrays.bytes += bytes + kAlignment;
  return offset;
}

// Of what lies before the located points of sample_on_chip(): values, (entries, tile_channels).
CRAD_INLINE int64_t staged_bytes(const Problem& problem, int64_t tile_channels) {
  return rounded_up(problem.entries * tile_channels * value_bytes(problem));
}

// Of what lies before the items of a batch in add_colour(): the located points.
CRAD_INLINE int64_t bytes_before_items(const Problem& problem, const Plan& plan) {
  return rounded_up(located_in_memory(problem, plan.tables, 0) * plan.batch);
}

// Of backward_on_chip().
struct OnChipMemory {
  int64_t sums;     // of grad_values: (entries, groups, tile_channels)
  int64_t staged;   // values: (entries, tile_channels)
  int64_t slopes;   // (points, slopes, warps that share a point)
  int64_t located;  // the tables of the points
  int64_t bytes;
};

CRAD_INLINE OnChipMemory memory_on_chip(const Problem& problem, const Plan& plan,
                                        const CornerSlopes& of_corner, bool want_values,
                                        bool want_coords) {
  const int64_t of_a_sum = bytes_of_sum(problem.value_type);
  const int64_t row = problem.entries * plan.tile_channels, groups = plan.threads / plan.lanes;
  const int64_t slopes = (of_corner.low + of_corner.high) * ceil_div(plan.lanes, kWarp);
  const int64_t located =
      located_bytes(plan.tables, corner_bytes(kOnChipEntry, of_a_sum, of_corner.low));
  Arrays arrays;
  OnChipMemory memory;
  memory.sums = append(arrays, want_values ? groups * row * of_a_sum : 0);
  memory.staged = append(arrays, want_coords ? row * value_bytes(problem) : 0);
  memory.slopes = append(arrays, want_coords ? plan.batch * slopes * of_a_sum : 0);
  memory.located = append(arrays, plan.batch * located);
  memory.bytes = arrays.bytes;
  return memory;
}

// Of backward_by_cell(). Points are those of a batch, and one more.
struct CellMemory {
  int64_t sums;     // of grad_values: (groups, entries, tile_channels)
  int64_t staged;   // values: (entries, tile_channels)
  int64_t taps;     // (points, ndim)
  int64_t slopes;   // (points, slopes)
  int64_t corners;  // offsets in a column: (cells, corners)
  int64_t sorted;   // the points by cell, and those that fill up the parts of groups
  int64_t words;    // the points as they come
  int64_t counts;   // of points: (warps, cells)
  int64_t bytes;
};

CRAD_INLINE CellMemory memory_by_cell(const Problem& problem, const Plan& plan, bool want_values,
                                      bool want_coords) {
  const int64_t of_a_sum = bytes_of_sum(problem.value_type), word = sizeof(uint32_t);
  const int64_t column = problem.entries * plan.tile_channels, groups = plan.threads / plan.lanes;
  const int64_t cells = cells_of(problem), slopes = slopes_by_cell(problem.ndim);
  const int64_t points = plan.batch + 1;
  Arrays arrays;
  CellMemory memory;
  memory.sums = append(arrays, want_values ? groups * column * of_a_sum : 0);
  memory.staged = append(arrays, want_coords ? column * value_bytes(problem) : 0);
  memory.taps = append(arrays, points * problem.ndim * kNumbersOfTaps * of_a_sum);
  memory.slopes = append(arrays, want_coords ? points * slopes * of_a_sum : 0);
  memory.corners = append(arrays, (cells << problem.ndim) * sizeof(int32_t));
  memory.sorted = append(arrays, (points + groups * (kSums / slopes)) * word);
  memory.words = append(arrays, points * word);
  memory.counts = append(arrays, plan.threads / kWarp * cells * sizeof(uint16_t));
  memory.bytes = arrays.bytes;
  return memory;
}

}  // namespace crad
