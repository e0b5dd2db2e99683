// Points in strips: the gradient of values is added where it belongs, by several threads at once,
// where the strips of a round add to parts of the grid that have no entry in common. This pays
// where neighbouring points read neighbouring entries, as in the warp of an image.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "plan.h"

namespace crad {

struct Strips {
  int64_t of_grid;                         // 1: there are grids enough for all threads
  std::vector<std::vector<Range>> rounds;  // of more; none if no two strips could be taken at once

  explicit Strips(const Problem& problem) {
    constexpr int64_t kFewest = 4096;  // points of a strip
    const int64_t points = problem.points_per_grid;
    const int64_t wanted = std::min(ceil_div(kRanges, problem.grids), points / kFewest);
    const int64_t length = ceil_div(points, std::max<int64_t>(1, wanted));
    of_grid = ceil_div(points, length);
    if (of_grid == 1) return;
    const int64_t number = problem.grids * of_grid;
    std::vector<Strip> strips(number);
    parallel(number, points_of(problem) * problem.ndim * kCoordBytes,
             [&](int64_t begin, int64_t end) {
               for (int64_t i = begin; i < end; ++i) {
                 const int64_t grid = i / of_grid * points, first = i % of_grid * length;
                 strips[i].range = {grid + first, grid + std::min(first + length, points), 0,
                                    problem.channels};
                 kernels().bounds(problem, strips[i].range, strips[i].first, strips[i].last);
               }
             });
    // Each strip in the first round that has none of its grid with an entry in common.
    for (int64_t grid = 0; grid < problem.grids; ++grid) {
      std::vector<std::vector<const Strip*>> taken;  // in every round
      for (int64_t i = grid * of_grid; i < (grid + 1) * of_grid; ++i) {
        const auto is_apart = [&](const std::vector<const Strip*>& round) {
          return std::all_of(round.begin(), round.end(), [&](const Strip* other) {
            return are_apart(strips[i], *other, problem.ndim);
          });
        };
        const auto free = std::find_if(taken.begin(), taken.end(), is_apart);
        const size_t round = free - taken.begin();
        if (round == taken.size()) taken.emplace_back();
        if (round == rounds.size()) rounds.emplace_back();
        taken[round].push_back(&strips[i]);
        rounds[round].push_back(strips[i].range);
      }
    }
    if (number < 2 * static_cast<int64_t>(rounds.size())) rounds.clear();
  }

 private:
  static constexpr int64_t kCoordBytes = 4;

  struct Strip {
    Range range;
    int64_t first[kMaxDim], last[kMaxDim];  // entries along an axis that may be read
  };

  static bool are_apart(const Strip& a, const Strip& b, int ndim) {
    for (int axis = 0; axis < ndim; ++axis)
      if (a.last[axis] < b.first[axis] || b.last[axis] < a.first[axis]) return true;
    return false;
  }
};

}  // namespace crad
