// The corners that points read: the products of their taps over the axes, or those of a simplex
// (walk.h). Here are the offsets and weights of the corners of a batch of points, and gradients of
// coordinates, which differ in weights.
#pragma once

#include "locate.h"
#include "walk.h"

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

// The corners of a batch of points, as the loops over channels take them: whatever the type of the
// coordinates, so that these are compiled once.
template <class A>
struct CornersOfBatch {
  const Problem& problem;
  const BatchOfPoints& points;
  const int count;                   // of a point
  const bool follow;                 // the corners of all points lie alike: taps follow each other
  uint32_t all = 0;                  // taps
  Buffer<int64_t> step;              // from the entry of the first corner to this one's, if so
  Buffer<PerPoint<int64_t>> offset;  // of the corner's entry; of the first corner's alone, if so
  Buffer<PerPoint<A>> weight;

  CornersOfBatch(const Problem& problem, const BatchOfPoints& points)
      : problem(problem),
        points(points),
        count(corners_of(problem)),
        follow(!problem.simplex && taps_follow_each_other(problem)),
        step(count),
        offset(follow ? 1 : count),
        weight(count),
        needs_apart_(problem.simplex ? kBatch : 1),
        needs_(count * needs_apart_) {}

  // The taps that must lie inside the grid for a corner to do so.
  CRAD_ALWAYS_INLINE uint32_t needs(int k, int lane) const {
    return needs_[k * needs_apart_ + (lane & (needs_apart_ - 1))];
  }

  CRAD_ALWAYS_INLINE Corner<A> corner(int k, int lane) const {
    return {follow ? offset[0][lane] + step[k] : offset[k][lane], weight[k][lane], k};
  }

  CRAD_ALWAYS_INLINE bool all_inside(int lane) const { return (all & ~points.inside[lane]) == 0; }

 protected:
  const int needs_apart_;  // of a corner and the next: 1, or if each point has its own, kBatch
  Buffer<uint32_t> needs_;
};

// Makes them of coordinates. The first axis is the fastest to vary in their order.
template <class X, class A>
struct Corners : CornersOfBatch<A> {
  using Base = CornersOfBatch<A>;
  using Base::all, Base::count, Base::follow, Base::offset, Base::problem, Base::step, Base::weight;

  Batch<X> batch;

  explicit Corners(const Problem& problem) : Base(problem, batch), walk_(problem.simplex ? 1 : 0) {
    for (int axis = 0; axis < problem.ndim; ++axis)
      for (int tap = 0; tap < tap_count(problem.mode); ++tap) all |= tap_bit(axis, tap);
    if (problem.simplex) return;
    needs_[0] = 0;
    step[0] = 0;
    for_each_product([&](int axis, int tap, int from, int to) {
      needs_[to] = needs_[from] | tap_bit(axis, tap);
      step[to] = step[from] + tap * problem.stride[axis];
    });
  }

  // Makes ready the batch of points from number `first` of a range on; returns how many there are.
  __attribute__((noinline)) int prepare(const Range& range, int64_t first) {
    const int points = fetch(problem, range, first, batch);
    for (int axis = 0; axis < problem.ndim; ++axis) locate_along(problem, axis, batch);
    if (problem.simplex) walk_[0].set(problem, batch);
    place();
    weigh(-1);
    return points;
  }

  // Sets the gradients of the points with respect to their coordinates: `dot` holds for every
  // corner the product of the output's gradient with its entry, 0 for corners outside.
  void differentiate(const Buffer<PerPoint<A>>& dot, int points, const Gradients& gradients) {
    X* const grad_coords = static_cast<X*>(gradients.grad_coords);
    for (int axis = 0; axis < problem.ndim; ++axis) {
      const PerPoint<A> total = slope(axis, dot);
      for (int i = 0; i < points; ++i) {
        X& to = grad_coords[batch.point[i] * problem.ndim + problem.ndim - 1 - axis];
        to = gradients.add_coords ? to + static_cast<X>(total[i]) : static_cast<X>(total[i]);
      }
    }
  }

 private:
  using Base::needs_;

  // Calls f(axis, tap, from, to) so that the corners of the axes before `axis` become those of one
  // axis more: corner `to` is corner `from` with a tap of that axis. `to` may be `from`.
  template <class F>
  void for_each_product(F f) const {
    const int taps = tap_count(problem.mode);
    for (int axis = 0, before = 1; axis < problem.ndim; ++axis, before *= taps)
      for (int tap = taps - 1; tap >= 0; --tap)
        for (int k = 0; k < before; ++k) f(axis, tap, k, tap * before + k);
  }

  // The derivatives along an axis of the sums over the corners of weight * dot.
  PerPoint<A> slope(int axis, const Buffer<PerPoint<A>>& dot) {
    if (problem.simplex && order_of(problem) == 0) return walk_[0].slope(problem, batch, axis, dot);
    weigh(axis);
    PerPoint<A> total = {};
    for (int k = 0; k < count; ++k)
      for (int i = 0; i < kBatch; ++i) total[i] += weight[k][i] * dot[k][i];
    return total;
  }

  // Sets the offsets of the corners.
  void place() {
    if (problem.simplex) return place_walk();
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

  void place_walk() {
    const Walk<X>& walk = walk_[0];
    uint32_t first = 0;
    offset[0] = {};
    for (int axis = 0; axis < problem.ndim; ++axis) {
      first |= tap_bit(axis, 0);
      for (int i = 0; i < kBatch; ++i) offset[0][i] += batch.offset[axis][0][i];
    }
    uint32_t* needs = needs_.get();
    for (int i = 0; i < kBatch; ++i) needs[i] = first;
    for (int k = 1; k < count; ++k, needs += kBatch)
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t taps = tap_bit(0, 0) | tap_bit(0, 1);
        needs[kBatch + i] = needs[i] ^ taps << walk.axis[k - 1][i] * kMaxTaps;
        offset[k][i] = offset[k - 1][i] + walk.change[k - 1][i];
      }
  }

  void weigh_walk(int differentiated) {
    const int order = order_of(problem) + (differentiated >= 0);
    if (order > 1) {
      for (int k = 0; k < count; ++k) weight[k] = {};
      return;
    }
    int axis = order == 0 ? -1 : differentiated;
    for (int other = 0; other < problem.ndim; ++other)
      if (order_along(problem, other) > 0) axis = other;
    walk_[0].weigh(problem, batch, axis, weight.get());
  }

  // Sets their weights; along the axis `differentiated` (-1: none) differentiated once more.
  __attribute__((noinline)) void weigh(int differentiated) {
    if (problem.simplex) return weigh_walk(differentiated);
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

  Buffer<Walk<X>> walk_;  // of a simplex, one
};

// Those of a point's corners that lie inside the grid.
template <class A>
struct InBounds {
  int count;
  Buffer<Corner<A>> corner;

  explicit InBounds(int most) : corner(most) {}

  // Those of a point whose corners are all inside.
  CRAD_ALWAYS_INLINE void take_all(const CornersOfBatch<A>& corners, int lane) {
    count = corners.count;
    for (int k = 0; k < count; ++k) corner[k] = corners.corner(k, lane);
  }

  CRAD_ALWAYS_INLINE void gather(const CornersOfBatch<A>& corners, int lane) {
    // Locals, so that the compiler need not expect a store to change them.
    const uint32_t outside = ~corners.points.inside[lane];
    const int64_t* const steps = corners.step.get();
    const int64_t first = corners.offset[0][lane];
    const bool follow = corners.follow;
    Corner<A>* const to = corner.get();
    int inside = 0;
    for (int k = 0, all = corners.count; k < all; ++k) {
      to[inside].offset = follow ? first + steps[k] : corners.offset[k][lane];
      to[inside].weight = corners.weight[k][lane];
      to[inside].number = k;
      inside += (corners.needs(k, lane) & outside) == 0;
    }
    count = inside;
  }
};

}  // namespace
}  // namespace crad
