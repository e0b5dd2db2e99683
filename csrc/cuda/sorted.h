// The gradient of the values in an order that never varies, for a grid that stays in memory: each
// point's contributions are listed by entry, a stable sort brings those of an entry together, and
// one group of threads adds them up.
#pragma once

#include "forward.h"

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

// Adds the contributions to each entry, in order; `entries` are sorted, and contribution i of them
// was number order[i] of the list.
template <class T, int V>
CRAD_KERNEL(kBlocks)
add_contributions(const Problem problem, const Plan plan, int64_t first, int64_t contributions,
                  const int64_t* entries, const int64_t* order, const accumulator<T>* weights,
                  const T* grad_output, accumulator<T>* grad_values) {
  using A = accumulator<T>;
  const int lane = threadIdx.x % plan.lanes, row = threadIdx.x / plan.lanes;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * (blockDim.x / plan.lanes) + row;
  if (begin >= contributions) return;
  const int64_t entry = entries[begin];
  if (entry == problem.grids * problem.entries) return;
  if (begin > 0 && entries[begin - 1] == entry) return;  // another group's
  const int corners = plan.tables.low * plan.tables.high;
  for (int64_t c = lane * V; c < problem.channels; c += plan.lanes * V) {
    A* const to = grad_values + entry * problem.channels + c;
    Pack<A, V> total = load<V>(to);
    for (int64_t i = begin; i < contributions && entries[i] == entry; ++i) {
      const int64_t number = order[i];
      const T* const from = grad_output + (first + number / corners) * problem.channels + c;
      add_product(weights[number], load<V>(from), total);
    }
    store<V>(to, total);
  }
}

}  // namespace crad
