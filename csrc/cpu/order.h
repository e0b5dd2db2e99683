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
  PartOrder(const Kernels& kernels, const Problem& problem, const Bands& bands, int32_t* part,
            int64_t* order, Parallel parallel)
      : bands_(bands), parts_(bands.number * bands.second_number) {
    // The number of pieces depends on the shape alone, and so not even the speed on chance.
    constexpr int64_t kPiece = 16 * 1024;
    const int64_t points = problem.points_per_grid, pieces = ceil_div(points, kPiece);
    std::vector<int64_t> counts(problem.grids * pieces * parts_);
    const auto each_piece = [&](auto f) {
      parallel(problem.grids * pieces, [&](int64_t i) {
        const int64_t first = i / pieces * points, begin = i % pieces * kPiece;
        f(counts.data() + i * parts_, first + begin, first + std::min(begin + kPiece, points));
      });
    };
    each_piece([&](int64_t* count, int64_t begin, int64_t end) {
      kernels.locate_parts(problem, bands, begin, end, part);
      for (int64_t p = begin; p < end; ++p) ++count[part[p]];
    });
    begins_.reserve(problem.grids * parts_ + 1);
    int64_t next = 0;
    for (int64_t grid = 0; grid < problem.grids; ++grid)
      for (int64_t i = 0; i < parts_; ++i) {
        begins_.push_back(next);
        for (int64_t piece = 0; piece < pieces; ++piece) {
          int64_t& count = counts[(grid * pieces + piece) * parts_ + i];
          const int64_t before = next;
          next += count;
          count = before;
        }
      }
    begins_.push_back(next);
    each_piece([&](int64_t* at, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) order[at[part[p]]++] = p;
    });
  }

  // The points of a band of a grid: from this place in the order to the next band's.
  int64_t begin_of(int64_t grid, int64_t band) const {
    return begins_[grid * parts_ + band * bands_.second_number];
  }

 private:
  Bands bands_;
  int64_t parts_;
  std::vector<int64_t> begins_;  // of the parts of all grids
};

}  // namespace crad
