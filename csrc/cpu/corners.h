// The corners that points read: the products of their taps over the axes. Here are the offsets and
// weights of the corners of a batch of points, and gradients of coordinates, which differ in
// weights.
#pragma once

#include "locate.h"

namespace crad {
namespace {

// A corner that lies inside the grid. (Together, since GCC would read several offsets at once where
// they lie side by side, just after they were written one by one, which stalls the processor.)
template <class A>
struct Corner {
  int64_t offset;
  A weight;
  int number;
};

// A batch of points, and their corners. The first axis is the fastest to vary in their order.
template <class X, class A>
struct Corners {
  const Problem& problem;
  const int count;         // of a point
  const bool follow;       // the taps of an axis follow each other
  uint32_t all = 0;        // taps
  Buffer<uint32_t> needs;  // the taps that must lie inside the grid
  Buffer<int64_t> step;    // from the entry of the first corner to this one's, if they follow
  Buffer<PerPoint<int64_t>> offset;  // of the corner's entry; of the first corner's alone, if so
  Buffer<PerPoint<A>> weight;
  Batch<X> batch;

  explicit Corners(const Problem& problem)
      : problem(problem),
        count(corners_of(problem)),
        follow(taps_follow_each_other(problem)),
        needs(count),
        step(count),
        offset(follow ? 1 : count),
        weight(count) {
    needs[0] = 0;
    step[0] = 0;
    for_each_product([&](int axis, int tap, int from, int to) {
      needs[to] = needs[from] | tap_bit(axis, tap);
      all |= needs[to];
      step[to] = step[from] + tap * problem.stride[axis];
    });
  }

  // Makes ready the batch of points from number `first` of a range on; returns how many there are.
  __attribute__((noinline)) int prepare(const Range& range, int64_t first) {
    const int points = fetch(problem, range, first, batch);
    for (int axis = 0; axis < problem.ndim; ++axis) locate_along(problem, axis, batch);
    place();
    weigh(-1);
    return points;
  }

  CRAD_ALWAYS_INLINE Corner<A> corner(int k, int lane) const {
    return {follow ? offset[0][lane] + step[k] : offset[k][lane], weight[k][lane], k};
  }

  CRAD_ALWAYS_INLINE bool all_inside(int lane) const { return (all & ~batch.inside[lane]) == 0; }

  // Sets the gradients of the points with respect to their coordinates: `dot` holds for every
  // corner the product of the output's gradient with its entry, 0 for corners outside.
  void differentiate(const Buffer<PerPoint<A>>& dot, int points, const Gradients& gradients) {
    X* const grad_coords = static_cast<X*>(gradients.grad_coords);
    for (int axis = 0; axis < problem.ndim; ++axis) {
      weigh(axis);
      PerPoint<A> total = {};
      for (int k = 0; k < count; ++k)
        for (int i = 0; i < kBatch; ++i) total[i] += weight[k][i] * dot[k][i];
      for (int i = 0; i < points; ++i) {
        X& to = grad_coords[batch.point[i] * problem.ndim + problem.ndim - 1 - axis];
        to = gradients.add_coords ? to + static_cast<X>(total[i]) : static_cast<X>(total[i]);
      }
    }
  }

 private:
  // Calls f(axis, tap, from, to) so that the corners of the axes before `axis` become those of one
  // axis more: corner `to` is corner `from` with a tap of that axis. `to` may be `from`.
  template <class F>
  void for_each_product(F f) const {
    const int taps = tap_count(problem.mode);
    for (int axis = 0, before = 1; axis < problem.ndim; ++axis, before *= taps)
      for (int tap = taps - 1; tap >= 0; --tap)
        for (int k = 0; k < before; ++k) f(axis, tap, k, tap * before + k);
  }

  // Sets the offsets of the corners.
  void place() {
    if (follow) {
      PerPoint<int64_t> sum = {};  // apart, so that the compiler need not expect an overlap
      for (int axis = 0; axis < problem.ndim; ++axis)
        for (int i = 0; i < kBatch; ++i) sum[i] += batch.offset[axis][0][i];
      offset[0] = sum;
      return;
    }
    offset[0] = {};
    for_each_product([&](int axis, int tap, int from, int to) {
      PerPoint<int64_t> sum;
      for (int i = 0; i < kBatch; ++i) sum[i] = offset[from][i] + batch.offset[axis][tap][i];
      offset[to] = sum;
    });
  }

  // Sets their weights; along the axis `differentiated` (-1: none) differentiated once more.
  __attribute__((noinline)) void weigh(int differentiated) {
    PerPoint<A> along[kMaxDim][kMaxTaps];
    with_mode(problem.mode, [&](auto mode) {
      for (int axis = 0; axis < problem.ndim; ++axis) {
        const auto set = [&](auto order) {
          for (int tap = 0; tap < tap_count(mode); ++tap)
            for (int i = 0; i < kBatch; ++i)
              along[axis][tap][i] = static_cast<A>(
                  tap_weight(mode, order, tap, batch.t[axis][i], batch.slope[axis][i]));
        };
        // The orders of samples and gradients as constants, for the compiler to make vector code.
        switch (const int order = order_along(problem, axis) + (axis == differentiated)) {
          case 0:
            set(std::integral_constant<int, 0>());
            break;
          case 1:
            set(std::integral_constant<int, 1>());
            break;
          default:
            set(order);
        }
      }
    });
    for (int i = 0; i < kBatch; ++i) weight[0][i] = 1;
    for_each_product([&](int axis, int tap, int from, int to) {
      PerPoint<A> product;
      for (int i = 0; i < kBatch; ++i) product[i] = weight[from][i] * along[axis][tap][i];
      weight[to] = product;
    });
  }
};

// Those of a point's corners that lie inside the grid.
template <class A>
struct InBounds {
  int count;
  Buffer<Corner<A>> corner;

  explicit InBounds(int most) : corner(most) {}

  // Those of a point whose corners are all inside.
  template <class X>
  CRAD_ALWAYS_INLINE void take_all(const Corners<X, A>& corners, int lane) {
    count = corners.count;
    for (int k = 0; k < count; ++k) corner[k] = corners.corner(k, lane);
  }

  template <class X>
  CRAD_ALWAYS_INLINE void gather(const Corners<X, A>& corners, int lane) {
    // Locals, so that the compiler need not expect a store to change them.
    const uint32_t outside = ~corners.batch.inside[lane];
    const uint32_t* const needs = corners.needs.get();
    const int64_t* const steps = corners.step.get();
    const int64_t first = corners.offset[0][lane];
    const bool follow = corners.follow;
    Corner<A>* const to = corner.get();
    int inside = 0;
    for (int k = 0, all = corners.count; k < all; ++k) {
      to[inside].offset = follow ? first + steps[k] : corners.offset[k][lane];
      to[inside].weight = corners.weight[k][lane];
      to[inside].number = k;
      inside += (needs[k] & outside) == 0;
    }
    count = inside;
  }
};

}  // namespace
}  // namespace crad
