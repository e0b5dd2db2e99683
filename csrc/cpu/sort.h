// Points in the order of the parts of the grid that they read, by a stable counting sort.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "empty.h"
#include "parallel.h"
#include "plan.h"

namespace crad {

class SortedPoints {
 public:
  // Sorts the points of every grid, in parallel if the call moves enough bytes.
  SortedPoints(const Call& call, const Bands& bands, int64_t bytes)
      : bands_(bands.number), order_(empty({call.points}, ScalarType::Long)) {
    // The number of pieces depends on the shape alone, so that the time is the same in every run.
    constexpr int64_t kFewest = 16 * 1024;    // points of a piece
    constexpr int64_t kMostCounts = 1 << 18;  // that are kept at a time
    const Problem& problem = call.problem;
    const Tensor parts_of_points = empty({call.points}, ScalarType::Int);
    int32_t* const part = static_cast<int32_t*>(parts_of_points.data_ptr());
    int64_t* const order = static_cast<int64_t*>(order_.data_ptr());
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
        parallel(grids * pieces, bytes, [&](int64_t piece, int64_t last) {
          for (; piece < last; ++piece) {
            const int64_t first = (first_grid + piece / pieces) * points;
            const int64_t begin = piece % pieces * piece_points;
            f(counts.data() + piece * parts, first + begin,
              first + std::min(begin + piece_points, points));
          }
        });
      };
      each_piece([&](int64_t* count, int64_t begin, int64_t end) {
        std::fill_n(count, parts, 0);
        kernels().locate_parts(problem, bands, {begin, end, 0, 0}, part);
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

  // The range with the points of a band of a grid.
  Range band(int64_t grid, int64_t band, Range range) const {
    const int64_t* const begin = &begins_[grid * bands_ + band];
    range.point_begin = begin[0];
    range.point_end = begin[1];
    range.order = static_cast<const int64_t*>(order_.data_ptr());
    return range;
  }

 private:
  int64_t bands_;                // of a grid
  std::vector<int64_t> begins_;  // of the bands of all grids, in the order
  Tensor order_;
};

}  // namespace crad
