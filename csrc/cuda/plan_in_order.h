// How the points of a large grid are sorted and cut, for its gradient in order.
#pragma once

#include "shared_memory.h"

namespace crad {

// How the points of a large grid are sorted: see backward_in_order.h.
struct Order {
  int window;        // entries of a window along an axis of the low table: the taps, or 1
  int corners;       // of a window: as many colours are there
  int items;         // of a point in the list that is sorted
  int64_t windows;   // of one colour, along the axes of the low table
  int64_t keys;      // of one colour
  int64_t piece;     // items that a group of threads adds, at most
  int64_t together;  // points that are sorted together

  bool wide() const { return corners * keys > INT32_MAX; }  // keys, of 8 bytes and not 4
};

// A point in the list, counted from the first, and which of its items.
struct Item {
  int point, number;
};

// The windows of one colour that have an entry of the grid.
CRAD_INLINE int64_t windows_along(int64_t size, int window) {
  return (size + window - 1 + window - 1) / window;
}

// Whether the corners of points are windows, and fewer items to sort are worth a launch a colour.
inline bool sorts_by_window(const Problem& problem, const Device& device) {
  constexpr int64_t kLaunch = 64 * 1024;  // bytes that a multiprocessor moves while one starts
  constexpr int64_t kSorted = 104;        // bytes that an item moves in 4 passes, of 4 and 8 bytes
  bool windows = !problem.simplex && taps_follow_each_other(problem);
  for (int axis = 0; axis < problem.ndim; ++axis) windows &= problem.size[axis] <= kExactSize;
  const Tables tables = tables_of(problem);
  const double fewer = static_cast<double>(points_of(problem)) * tables.high * (tables.low - 1);
  const int64_t of_an_item = kSorted + problem.channels * value_bytes(problem);
  const int64_t launches = 2 * (tables.low - 1) * kLaunch * device.multiprocessors;
  return windows && fewer * static_cast<double>(of_an_item) > static_cast<double>(launches);
}

// Of the items of all points: the plan of the kernels that add them.
inline Plan plan_in_order(const Problem& problem, const Device& device, const void* grad_output,
                          Order& order, const Forced& forced = {}) {
  // Items that are sorted together; each takes 16 bytes, or 24 with wide keys, beside the sort's
  // own. Their rests have at most kRests elements, or as many as those of one point.
  constexpr int64_t kMost = 1 << 22, kRests = 1 << 24, kPiece = 64;
  Plan plan =
      plan_of(problem, Family::in_memory, vector_of(problem, grad_output, kWideBytes, forced));
  const bool by_window = sorts_by_window(problem, device);
  order.window = by_window ? tap_count(problem.mode) : 1;
  order.corners = by_window ? plan.tables.low : 1;
  order.items = plan.tables.low * plan.tables.high / order.corners;
  order.windows = 1;
  order.keys = problem.grids;
  for (int d = 0; d < problem.ndim; ++d) {
    const int64_t size = problem.size[problem.ndim - 1 - d];
    if (d < plan.tables.low_axes)
      order.windows *= windows_along(size, order.window);
    else
      order.keys *= size;
  }
  order.keys *= order.windows;

  plan.lanes = lanes_of(problem.channels / plan.vector);
  plan.threads = device.threads;
  const int64_t located = located_in_memory(problem, plan.tables, 0);
  const int64_t room = shared_of_a_block(device) - kAlignment;
  const int64_t most = batch_of(located + sizeof(Item), room, device.threads);
  // Two blocks of a colour for every multiprocessor, but at least an item for every group.
  const int64_t points = points_of(problem);
  const int64_t blocks = 2 * device.multiprocessors * order.corners;
  const int64_t least = std::max(points * order.items / blocks, int64_t{plan.threads} / plan.lanes);
  plan.batch = 1;
  while (2 * plan.batch <= most && plan.batch < least) plan.batch *= 2;
  plan.shared = bytes_before_items(problem, plan) + plan.batch * sizeof(Item);

  order.piece = std::min<int64_t>(plan.batch, kPiece);
  const int64_t rests = kRests / (order.corners * problem.channels) * order.piece;
  order.together = std::clamp<int64_t>(std::min(kMost, rests) / order.items, 1, points);
  if (forced.chunks > 0) order.together = ceil_div(points, forced.chunks);
  return plan;
}

// Of the kernel that lists the keys of points.
inline Plan plan_keys(const Problem& problem, const Device& device, const Order& order) {
  Plan plan{};
  plan.tables = tables_of(problem);
  const int64_t point = located_bytes(plan.tables, corner_bytes(kInMemoryEntry, sizeof(float), 0));
  plan.batch = batch_of(point, shared_of_a_block(device), device.threads);
  const int64_t items = static_cast<int64_t>(plan.batch) * order.items;
  plan.threads = static_cast<int>(round_up(std::min<int64_t>(device.threads, items), kWarp));
  plan.shared = point * plan.batch;
  return plan;
}

}  // namespace crad
