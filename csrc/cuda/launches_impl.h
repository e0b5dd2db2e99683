// From run-time to compile-time choices. Coordinates other than float, and points whose corners
// take two tables, have one general variant.
#pragma once

#include "backward_by_cell.h"
#include "backward_in_memory.h"
#include "backward_in_order.h"
#include "backward_on_chip.h"
#include "forward.h"
#include "launches.h"
#include "planes.h"

namespace crad {

template <class T>
constexpr int kWide = kWideBytes / sizeof(T);
template <class T>
constexpr int kWord = sizeof(T) < kWordBytes ? kWordBytes / sizeof(T) : 1;
template <class T>
constexpr int kOfSums = kWideBytes / sizeof(accumulator<T>);  // by cell

// Runs a kernel as it was planned.
template <class Kernel, class... Arguments>
void launch_planned(Kernel kernel, const Problem& problem, const Plan& plan, Stream stream,
                    Arguments... arguments) {
  launch(kernel, plan.blocks(problem), plan.threads, plan.shared, stream, problem, plan,
         arguments...);
}

template <class T>
void Launches<T>::sample(const Problem& problem, const Plan& plan, Stream stream,
                         const PointStrides& strides, void* output) {
  T* const to = static_cast<T*>(output);
  const bool planes = plan.family == Family::planes, on_chip = plan.family == Family::on_chip;
  const bool wide = plan.vector > 1;
  with_coord_type(problem.coord_type, [&](auto coord) {
    using X = decltype(coord);
    constexpr int V = kWide<T>;
    if (planes) return launch_planned(sample_planes<T, X>, problem, plan, stream, strides, to);
    launch_planned(on_chip && wide ? sample_on_chip<T, X, V>
                   : on_chip       ? sample_on_chip<T, X, 1>
                   : wide          ? sample_in_memory<T, X, V>
                                   : sample_in_memory<T, X, 1>,
                   problem, plan, stream, to);
  });
}

// Calls f(X, kLow, kHigh, kCorners): how many slopes a corner has, and how many corners there are
// if the compiler is to know it, else 0. It knows those of linear in 2-D, which takes fewer
// instructions and registers on the chip.
template <class F>
void with_slopes(const Problem& problem, F f) {
  using std::integral_constant;
  constexpr integral_constant<int, 0> none;
  constexpr integral_constant<int, 2> two;
  constexpr integral_constant<int, 4> four;
  constexpr integral_constant<int, 8> eight;
  const CornerSlopes slopes = corner_slopes_of(problem);
  const bool wide = problem.coord_type == CoordType::float64;
  if (slopes.low == 8)  // of a simplex
    wide ? f(double(), eight, none, none) : f(float(), eight, none, none);
  else if (wide)
    f(double(), four, four, none);
  else if (slopes.low == 2)
    problem.ndim == 2 && problem.mode == Mode::linear && !problem.simplex
        ? f(float(), two, none, four)
        : f(float(), two, none, none);
  else
    slopes.high == 0 ? f(float(), four, none, none) : f(float(), four, four, none);
}

template <class T>
void Launches<T>::backward(const Problem& problem, const Plan& plan, Stream stream,
                           const void* grad_output, void* value_parts, void* coord_parts) {
  using A = accumulator<T>;
  const T* const grads = static_cast<const T*>(grad_output);
  const Gradients<A> gradients{static_cast<A*>(value_parts), static_cast<A*>(coord_parts)};
  const bool wide = plan.vector > 1, on_chip = plan.family == Family::on_chip;
  if (plan.family == Family::by_cell) {
    with_small(problem.ndim, [&](auto ndim) {
      constexpr int kNdim = decltype(ndim)::value;
      if constexpr (kNdim <= 3)
        launch_planned(
            wide ? backward_by_cell<T, kOfSums<T>, kNdim> : backward_by_cell<T, 1, kNdim>, problem,
            plan, stream, grads, gradients);
    });
    return;
  }
  with_slopes(problem, [&](auto coord, auto low, auto high, auto corners) {
    using X = decltype(coord);
    constexpr int kLow = decltype(low)::value, kHigh = decltype(high)::value;
    constexpr int kCorners = decltype(corners)::value;
    launch_planned(on_chip && wide ? backward_on_chip<T, X, kWord<T>, kLow, kHigh, kCorners>
                   : on_chip       ? backward_on_chip<T, X, 1, kLow, kHigh, kCorners>
                   : wide          ? backward_in_memory<T, X, kWide<T>, kLow, kHigh>
                                   : backward_in_memory<T, X, 1, kLow, kHigh>,
                   problem, plan, stream, grads, gradients);
  });
}

template <class T>
void Launches<T>::backward_planes(const Problem& problem, const Plan& plan, Stream stream,
                                  const PointStrides& strides, const void* grad_output,
                                  void* grad_values, void* coord_parts) {
  using A = accumulator<T>;
  const Gradients<A> gradients{static_cast<A*>(grad_values), static_cast<A*>(coord_parts)};
  with_slopes(problem, [&](auto coord, auto low, auto high, auto) {
    using X = decltype(coord);
    constexpr int kLow = decltype(low)::value, kHigh = decltype(high)::value;
    launch_planned(
        coord_parts ? crad::backward_planes<T, X, kLow, kHigh> : crad::backward_planes<T, X, 0, 0>,
        problem, plan, stream, strides, static_cast<const T*>(grad_output), gradients);
  });
}

template <class T>
void Launches<T>::add_in_order(const Problem& problem, const Plan& plan, const Order& order,
                               Stream stream, int64_t first, int64_t points, void* sorted_keys,
                               const int64_t* numbers, const void* grad_output, void* grad_values,
                               void* rests) {
  using A = accumulator<T>;
  const int64_t items = points * order.items;
  const int64_t groups = plan.threads / plan.lanes;
  const int64_t continued = (ceil_div(items, order.piece) - 1) * order.corners;
  const Keys keys{sorted_keys, order.wide()};
  const bool wide = plan.vector > 1;
  constexpr int V = kWide<T>;
  for (int64_t colour = 0; colour < order.corners; ++colour) {
    with_coord_type(problem.coord_type, [&](auto coord) {
      using X = decltype(coord);
      launch(wide ? add_colour<T, X, V> : add_colour<T, X, 1>, ceil_div(items, plan.batch),
             plan.threads, plan.shared, stream, problem, plan, order, colour, first, items, keys,
             numbers, static_cast<const T*>(grad_output), static_cast<A*>(grad_values),
             static_cast<A*>(rests));
    });
    if (continued > 0)
      launch(wide ? add_rests<T, V> : add_rests<T, 1>, ceil_div(continued, groups), plan.threads, 0,
             stream, problem, plan, order, colour, items, keys, static_cast<A*>(grad_values),
             static_cast<const A*>(rests));
  }
}

}  // namespace crad
