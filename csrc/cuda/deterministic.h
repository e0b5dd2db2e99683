// The gradient of the values in an order that never varies, for a grid that stays in memory: each
// point's contributions are listed by entry, a stable sort brings those of an entry together, and
// groups of threads add them up, piece by piece.
#pragma once

#include "corners.h"

namespace crad {

// For every corner of the points from `first` on: its entry of all grids, or their number for one
// outside, and its weight.
template <class X, class A>
CRAD_KERNEL(kBlocks)
list_contributions(const Problem problem, const Plan plan, int64_t first, int64_t points,
                   int64_t* entries, A* weights) {
  using C = Corner<int64_t, A, 0>;
  CRAD_SHARED_MEMORY(memory);
  Batch<C> batch(plan.tables, plan.batch, memory);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * plan.batch;
  const int count = static_cast<int>(points - begin < plan.batch ? points - begin : plan.batch);
  batch.template fill<X>(problem, first + begin, count);
  const int corners = plan.tables.low * plan.tables.high;
  for (int64_t i = threadIdx.x; i < static_cast<int64_t>(count) * corners; i += blockDim.x) {
    const int point = static_cast<int>(i / corners), corner = static_cast<int>(i % corners);
    const C low = batch.low_corner(corner % plan.tables.low, point);
    const C high = batch.high_corner(corner / plan.tables.low, point);
    const int64_t entry = low.entry + high.entry;
    const int64_t grid = (first + begin + point) / problem.points_per_grid;
    const int64_t to = begin * corners + i;
    entries[to] = entry >= 0 && batch.place[point] ? grid * problem.entries + entry
                                                   : problem.grids * problem.entries;
    weights[to] = low.weight * high.weight;
  }
}

constexpr int64_t kPiece = 64;  // contributions that one group of threads adds, at most
CRAD_INLINE int64_t pieces_of(int64_t contributions) {
  return (contributions + kPiece - 1) / kPiece;
}

// What a group of threads adds: the contributions to one entry within a piece of the sorted list.
struct Run {
  int64_t begin, end, entry;
};

// Adds the contributions of a run to `total`, V channels of them.
template <int V, class T>
CRAD_DEVICE void add_run(const Run& run, int64_t first, int corners, int64_t channels,
                         const int64_t* order, const accumulator<T>* weights, const T* grad_output,
                         Pack<accumulator<T>, V>& total) {
  CRAD_UNROLL
  for (int64_t i = run.begin; i < run.end; ++i) {
    const int64_t number = order[i];
    add_product(weights[number], load<V>(grad_output + (first + number / corners) * channels),
                total);
  }
}

// Adds the contributions to each entry, in order. `entries` are sorted, and contribution i of them
// was number order[i] of the list. A group begins where an entry or a piece does. The sum of an
// entry's first run goes to the gradient, those that continue into further pieces to `rests`, a row
// a piece.
template <class T, int V>
CRAD_KERNEL(kBlocks)
add_contributions(const Problem problem, int lanes, int corners, int64_t first,
                  int64_t contributions, const int64_t* entries, const int64_t* order,
                  const accumulator<T>* weights, const T* grad_output, accumulator<T>* grad_values,
                  accumulator<T>* rests) {
  using A = accumulator<T>;
  const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
  Run run{static_cast<int64_t>(blockIdx.x) * (blockDim.x / lanes) + row, 0, 0};
  if (run.begin >= contributions) return;
  run.entry = entries[run.begin];
  if (run.entry == problem.grids * problem.entries) return;  // outside
  const bool continued = run.begin > 0 && entries[run.begin - 1] == run.entry;
  if (continued && run.begin % kPiece != 0) return;  // another group's
  const int64_t piece_end = (run.begin / kPiece + 1) * kPiece;
  const int64_t most = piece_end < contributions ? piece_end : contributions;
  run.end = run.begin + 1;
  while (run.end < most && entries[run.end] == run.entry) ++run.end;
  A* const to = continued ? rests + run.begin / kPiece * problem.channels
                          : grad_values + run.entry * problem.channels;
  for (int64_t c = lane * V; c < problem.channels; c += lanes * V) {
    Pack<A, V> total = continued ? filled<A, V>(0) : load<V>(to + c);
    add_run<V>(run, first, corners, problem.channels, order, weights, grad_output + c, total);
    store<V>(to + c, total);
  }
}

// Adds the rests of each entry to its gradient, in order. A group begins where an entry continues
// into a piece from the one that it began in.
template <class T, int V>
CRAD_KERNEL(kBlocks)
add_rests(const Problem problem, int lanes, int64_t contributions, const int64_t* entries,
          accumulator<T>* grad_values, const accumulator<T>* rests) {
  using A = accumulator<T>;
  const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * (blockDim.x / lanes) + row + 1;
  const int64_t pieces = pieces_of(contributions);
  if (piece >= pieces) return;
  const int64_t begin = piece * kPiece, entry = entries[begin];
  if (entry == problem.grids * problem.entries || entries[begin - 1] != entry) return;
  // Continued from further back: another group's.
  if (piece > 1 && entries[begin - kPiece] == entry && entries[begin - kPiece - 1] == entry) return;
  for (int64_t c = lane * V; c < problem.channels; c += lanes * V) {
    A* const to = grad_values + entry * problem.channels + c;
    Pack<A, V> total = load<V>(to);
    CRAD_UNROLL
    for (int64_t p = piece; p < pieces && entries[p * kPiece] == entry; ++p)
      add_product(A(1), load<V>(rests + p * problem.channels + c), total);
    store<V>(to, total);
  }
}

}  // namespace crad
