// How a call is cut into ranges of points and channels. A plan depends on the shape alone, never on
// the number of threads, so that the sums of the backward pass are the same for any of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace crad {

struct Plan {
  int64_t tile;    // channels of a range
  int64_t tiles;   // of all channels
  int64_t chunk;   // points of a range
  int64_t chunks;  // of the points of one grid

  Range range(int64_t item, int64_t tile_index, int64_t chunk_index, const Problem& problem) const {
    const int64_t first = item * problem.points_per_grid;
    const int64_t begin = chunk_index * chunk, channel = tile_index * tile;
    return {first + begin, first + std::min(begin + chunk, problem.points_per_grid), channel,
            std::min(channel + tile, problem.channels)};
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As many channels as keep the tile of the grid, at so many bytes an element, in a core's own
// cache.
inline int64_t tile_of(const Problem& problem, int64_t bytes) {
  constexpr int64_t kCache = 512 * 1024, kMinimum = 64;
  const int64_t fitting = kCache / (bytes * problem.entries) / 16 * 16;
  return std::min(problem.channels, std::max(fitting, kMinimum));
}

inline Plan plan_of(const Problem& problem, int64_t tile, int64_t chunk) {
  return {tile, ceil_div(problem.channels, tile), chunk, ceil_div(problem.points_per_grid, chunk)};
}

inline Plan forward_plan(const Problem& problem) {
  constexpr int64_t kElements = 64 * 1024;  // of a range: enough to hide the cost of scheduling it
  const int64_t tile = tile_of(problem, 4);
  return plan_of(problem, tile, std::max<int64_t>(1, kElements / tile));
}

// Each chunk of points adds to a grid of its own; these are summed afterwards. Their number is as
// many as keep machines with many cores busy, but never so many that the sum costs more than
// reading grad_output.
inline Plan backward_plan(const Problem& problem) {
  constexpr int64_t kRanges = 32, kPoints = 64, kAlways = 1 << 20;
  const int64_t tile = tile_of(problem, 8);
  const int64_t wanted = ceil_div(kRanges, ceil_div(problem.channels, tile) * problem.grids);
  const int64_t points = problem.points_per_grid;
  const int64_t affordable =
      std::max(points * problem.channels, kAlways) / (2 * problem.entries * problem.channels);
  const int64_t chunks =
      std::max<int64_t>(1, std::min({wanted, affordable, ceil_div(points, kPoints)}));
  return plan_of(problem, tile, ceil_div(points, chunks));
}

}  // namespace crad
