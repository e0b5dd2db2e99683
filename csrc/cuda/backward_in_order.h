// The gradient of the values of a large grid in a fixed order, without atomic additions: what
// add_in_order() in sample.cu launches for a call that is to be deterministic. plan_in_order.h cuts
// it.
//
// All corners of a point lie in a window: as many entries along every axis as there are taps. The
// points are sorted by window; a group of threads sums what the points of one window add to each of
// its corners, and then adds the sums to the gradient. Windows whose first entries differ by a
// multiple of the taps have no entry in common: they are of one colour. A launch adds the windows
// of one colour, so nothing needs to be atomic.
//
// What is sorted are the keys of items. Only the axes of the low table have windows; along the
// others an entry is a key of its own, so that a point has an item for every corner of its high
// table. Where the taps of a point are no window (cubic, padded tap by tap), or where a launch a
// colour takes longer than to sort more, windows have one entry, and a point has an item for every
// corner: see plan_in_order().
#pragma once

#include "corners.h"
#include "plan_in_order.h"
#include "slopes.h"

namespace crad {

// The keys of items, of 4 or 8 bytes.
struct Keys {
  void* data;
  bool wide;

  CRAD_DEVICE int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  CRAD_DEVICE void set(int64_t i, int64_t key) const {
    if (wide)
      static_cast<int64_t*>(data)[i] = key;
    else
      static_cast<int32_t*>(data)[i] = static_cast<int32_t>(key);
  }
};

// The first of the item's corners in the low table, and its corner in the high one.
struct ItemCorners {
  int low, high;
};
CRAD_INLINE ItemCorners corners_of_item(const Tables& tables, const Order& order, int item) {
  const int lows = tables.low / order.corners;
  return {item % lows * order.corners, item / lows};
}

// The key of an item: by colour, then by window. Those outside come last.
template <class C>
CRAD_DEVICE int64_t key_of(const Problem& problem, const Order& order, const Batch<C>& batch,
                           int point, int item, int64_t grid) {
  const int64_t outside = order.corners * order.keys;
  const ItemCorners corners = corners_of_item(batch.tables, order, item);
  const C high = batch.high_corner(corners.high, point);
  if (!batch.place[point] || high.entry < 0) return outside;
  int corner = corners.low;
  int64_t entry = batch.low_corner(corner, point).entry;
  while (entry < 0 && ++corner < corners.low + order.corners)
    entry = batch.low_corner(corner, point).entry;
  if (entry < 0) return outside;
  int64_t colour = 0, window = 0, colours = 1, windows = 1, entries = 1;
  for (int d = 0; d < batch.tables.low_axes; ++d) {
    const int64_t size = problem.size[problem.ndim - 1 - d];
    const int64_t first =
        entry / entries % size + (order.window - 1) - corner / colours % order.window;
    colour += first % order.window * colours;
    window += first / order.window * windows;
    colours *= order.window;
    windows *= windows_along(size, order.window);
    entries *= size;
  }
  const int64_t outer = (grid * problem.entries + high.entry) / entries;
  return colour * order.keys + outer * windows + window;
}

// The entry, of all grids, of a corner of the window that a key is of; below 0 outside the grid.
CRAD_DEVICE int64_t entry_of(const Problem& problem, const Tables& tables, const Order& order,
                             int64_t key, int corner) {
  int64_t colour = key / order.keys, window = key % order.windows;
  const int64_t outer = key % order.keys / order.windows;
  int64_t entry = 0, entries = 1;
  bool inside = true;
  for (int d = 0; d < tables.low_axes; ++d) {
    const int64_t size = problem.size[problem.ndim - 1 - d];
    const int64_t number = windows_along(size, order.window);
    const int64_t at = window % number * order.window + colour % order.window - (order.window - 1) +
                       corner % order.window;
    inside &= is_entry(at, size);
    entry += at * entries;
    entries *= size;
    window /= number;
    colour /= order.window;
    corner /= order.window;
  }
  return inside ? outer * entries + entry : -1;
}

// Lists the keys of the items of the points from `first` on.
template <class X>
CRAD_KERNEL(kBlocks)
list_keys(const Problem problem, const Plan plan, const Order order, int64_t first, int64_t points,
          Keys keys) {
  using C = Corner<int64_t, float, 0>;
  CRAD_SHARED_MEMORY(memory);
  Batch<C> batch(plan.tables, plan.batch, memory);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * plan.batch;
  const int count = static_cast<int>(points - begin < plan.batch ? points - begin : plan.batch);
  batch.template fill<X>(problem, first + begin, count);
  for (int64_t i = threadIdx.x; i < static_cast<int64_t>(count) * order.items; i += blockDim.x) {
    const int point = static_cast<int>(i / order.items), item = static_cast<int>(i % order.items);
    const int64_t grid = (first + begin + point) / problem.points_per_grid;
    keys.set(begin * order.items + i, key_of(problem, order, batch, point, item, grid));
  }
}

// Adds the items of one colour to the gradient, in the order of `keys`, which are sorted; item i
// was number numbers[i] of the list. A group of threads begins where a window or a piece does. The
// sums of a window's first run go to the gradient, those that continue into further pieces to
// `rests`, a row for each corner and piece.
template <class T, class X, int V>
CRAD_KERNEL((kBlocksFor<accumulator<T>, V>))
add_colour(const Problem problem, const Plan plan, const Order order, int64_t colour, int64_t first,
           int64_t items, Keys keys, const int64_t* numbers, const T* grad_output,
           accumulator<T>* grad_values, accumulator<T>* rests) {
  using A = accumulator<T>;
  using C = Corner<int64_t, A, 0>;
  constexpr int kCorners = 4;  // at once
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * plan.batch;
  const int count = static_cast<int>(items - begin < plan.batch ? items - begin : plan.batch);
  const int64_t from = colour * order.keys, to = from + order.keys;
  if (keys[begin] >= to || keys[begin + count - 1] < from) return;
  CRAD_SHARED_MEMORY(memory);
  Batch<C> batch(plan.tables, plan.batch, memory);
  Item* const item = reinterpret_cast<Item*>(memory + bytes_before_items(problem, plan));
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int number = static_cast<int>(numbers[begin + i]);
    item[i] = {number / order.items, number % order.items};
    locate<X>(problem, plan.tables, first + item[i].point,
              PointCorners<C>{batch.low + i, batch.high + i, plan.batch});
  }
  __syncthreads();

  const Group group(plan);
  for (int i = group.index; i < count; i += group.count) {
    const int64_t key = keys[begin + i];
    if (key < from || key >= to) continue;
    const bool continued = begin + i > 0 && keys[begin + i - 1] == key;
    if (continued && i % order.piece != 0) continue;  // another group's
    const int piece_end = static_cast<int>((i / order.piece + 1) * order.piece);
    const int most = piece_end < count ? piece_end : count;
    int end = i + 1;
    while (end < most && keys[begin + end] == key) ++end;
    const int64_t grid = (first + item[i].point) / problem.points_per_grid;
    const ItemCorners own = corners_of_item(plan.tables, order, item[i].number);
    const int64_t offset = grid * problem.entries + batch.high_corner(own.high, i).entry;
    A* const rest = rests + (begin + i) / order.piece * order.corners * problem.channels;
    for (int64_t c = group.lane * V; c < problem.channels; c += plan.lanes * V)
      for (int corner = 0; corner < order.corners; corner += kCorners) {
        const int left = order.corners - corner;
        Pack<A, V> total[kCorners] = {};
        for (int j = i; j < end; ++j) {
          const Pack<A, V> grad =
              load<V>(grad_output + (first + item[j].point) * problem.channels + c);
          const ItemCorners at = corners_of_item(plan.tables, order, item[j].number);
          const A high = batch.high_corner(at.high, j).weight;
          CRAD_UNROLL
          for (int k = 0; k < kCorners; ++k)
            if (k < left)
              add_product(batch.low_corner(at.low + corner + k, j).weight * high, grad, total[k]);
        }
        CRAD_UNROLL
        for (int k = 0; k < kCorners; ++k) {
          if (k >= left) continue;
          if (continued) {
            store<V>(rest + (corner + k) * problem.channels + c, total[k]);
            continue;
          }
          const int64_t entry = batch.low_corner(own.low + corner + k, i).entry;
          if (entry < 0) continue;
          A* const sums = grad_values + (offset + entry) * problem.channels + c;
          add_product(A(1), load<V>(sums), total[k]);
          store<V>(sums, total[k]);
        }
      }
  }
}

// Adds the rests of the windows of one colour to the gradient, in order. A group of threads takes a
// corner of a window that continues into a piece from the one that it began in.
template <class T, int V>
CRAD_KERNEL(kBlocks)
add_rests(const Problem problem, const Plan plan, const Order order, int64_t colour, int64_t items,
          Keys keys, accumulator<T>* grad_values, const accumulator<T>* rests) {
  using A = accumulator<T>;
  const Group group(plan);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * group.count + group.index;
  const int64_t piece = own / order.corners + 1, begin = piece * order.piece;
  if (begin >= items) return;
  const int64_t key = keys[begin];
  if (key / order.keys != colour || keys[begin - 1] != key) return;
  // Continued from further back: another group's.
  if (piece > 1 && keys[begin - order.piece] == key && keys[begin - order.piece - 1] == key) return;
  const int corner = static_cast<int>(own % order.corners);
  const int64_t entry = entry_of(problem, plan.tables, order, key, corner);
  if (entry < 0) return;
  for (int64_t c = group.lane * V; c < problem.channels; c += plan.lanes * V) {
    A* const to = grad_values + entry * problem.channels + c;
    Pack<A, V> total = load<V>(to);
    for (int64_t p = piece; p * order.piece < items && keys[p * order.piece] == key; ++p)
      add_product(A(1), load<V>(rests + (p * order.corners + corner) * problem.channels + c),
                  total);
    store<V>(to, total);
  }
}

}  // namespace crad
