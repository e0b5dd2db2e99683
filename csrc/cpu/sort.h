// Points in the order of the parts of the grid that they read, by a stable counting sort.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan.h"

namespace crad {

class PartOrder {
 public:
  // Sorts the points of every grid into `order`, which has room for all, and so has `part`.
  // `parallel(count, f)` calls f(i) for 0 <= i < count.
  template <class Parallel>
  PartOrder(const Problem& problem, const Bands& bands, int32_t* part, int64_t* order,
            Parallel parallel)
      : bands_(bands.number) {
    // The number of pieces depends on the shape alone, and so not even the speed on chance.
    constexpr int64_t kFewest = 16 * 1024;    // points of a piece
    constexpr int64_t kMostCounts = 1 << 18;  // that are kept at a time
    const int64_t parts = bands.number * bands.second_number, points = problem.points_per_grid;
    const int64_t piece_points = std::max(kFewest, ceil_div(points, kMostCounts / parts));
    const int64_t pieces = ceil_div(points, piece_points);
    const int64_t together = std::min(problem.grids, kMostCounts / (pieces * parts));
    std::vector<int64_t> counts(together * pieces * parts);
    begins_.reserve(problem.grids * bands_ + 1);
    int64_t next = 0;
    for (int64_t first_grid = 0; first_grid < problem.grids; first_grid += together) {
      const int64_t grids = std::min(together, problem.grids - first_grid);
      const auto each_piece = [&](auto f) {
        parallel(grids * pieces, [&](int64_t i) {
          const int64_t first = (first_grid + i / pieces) * points;
          const int64_t begin = i % pieces * piece_points;
          f(counts.data() + i * parts, first + begin,
            first + std::min(begin + piece_points, points));
        });
      };
      each_piece([&](int64_t* count, int64_t begin, int64_t end) {
        std::fill_n(count, parts, 0);
        kernels().locate_parts(problem, bands, begin, end, part);
        for (int64_t p = begin; p < end; ++p) ++count[part[p]];
      });
      for (int64_t grid = 0; grid < grids; ++grid)
        for (int64_t i = 0; i < parts; ++i) {
          if (i % bands.second_number == 0) begins_.push_back(next);
          for (int64_t piece = 0; piece < pieces; ++piece) {
            int64_t& count = counts[(grid * pieces + piece) * parts + i];
            const int64_t before = next;
            next += count;
            count = before;
          }
        }
      each_piece([&](int64_t* at, int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) order[at[part[p]]++] = p;
      });
    }
    begins_.push_back(next);
  }

  // The points of a band of a grid: from this place in the order to the next band's.
  int64_t begin_of(int64_t grid, int64_t band) const { return begins_[grid * bands_ + band]; }

 private:
  int64_t bands_;                // of a grid
  std::vector<int64_t> begins_;  // of the bands of all grids
};

}  // namespace crad
