// The kernels of one type of values: from run-time to compile-time choices. Coordinates other than
// float, and points whose corners take two tables, have one general variant.
#pragma once

#include "backward_in_memory.h"
#include "backward_on_chip.h"
#include "kernels.h"
#include "sorted.h"
#include "sums.h"

namespace crad {

inline bool is_aligned(const void* memory, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
}

// As many channels as a thread moves at once; 1 where rows are not aligned to that.
template <class T>
int vector_of(const Problem& problem, const void* grad_output, int bytes) {
  const int vector = bytes / static_cast<int>(sizeof(T));
  return vector > 1 && problem.channels % vector == 0 && is_aligned(problem.values, bytes) &&
                 is_aligned(grad_output, bytes)
             ? vector
             : 1;
}

template <class T>
constexpr int kWide = 16 / sizeof(T);  // channels of 16 bytes
template <class T>
// Of 4 bytes, or of a number: what a thread owns on the chip. The channels whose sums fit there are
// few: 64 entries of float, with their values, leave a multiprocessor 13 warps of words, but 3 of
// vectors. On sm_90, linear in 2-D, vectors take 2.9 times fewer instructions (1090 a warp for 4
// points of 128 channels, words 857 for 32) and 117 registers for 80, but have no other warp to
// wait with: a scheduler gets 3 warps of words, less than one of vectors. Not yet timed on a GPU.
constexpr int kWord = sizeof(T) < 4 ? 4 / sizeof(T) : 1;

template <class T>
void Kernels<T>::sample(const Problem& problem, Stream stream, void* output) {
  const bool wide = vector_of<T>(problem, nullptr, 16) > 1;
  if (problem.coord_type == CoordType::float32)
    wide ? launch_sample<T, float, kWide<T>>(problem, stream, output)
         : launch_sample<T, float, 1>(problem, stream, output);
  else
    wide ? launch_sample<T, double, kWide<T>>(problem, stream, output)
         : launch_sample<T, double, 1>(problem, stream, output);
}

// Calls f(X, kLow, kHigh, kCorners): how many slopes the tables of a corner hold, and how many
// corners there are if the compiler is to know it, else 0. It knows those of linear in 2-D: on the
// chip that takes 857 instructions for 1176, and 80 registers for 96 (sm_90, float).
template <class F>
void with_variant(const Problem& problem, F f) {
  using std::integral_constant;
  constexpr integral_constant<int, 0> any;
  const Tables tables = tables_of(problem.ndim, problem.mode);
  if (problem.coord_type == CoordType::float64)
    f(double(), integral_constant<int, 4>(), integral_constant<int, 4>(), any);
  else if (problem.ndim == 2 && problem.mode == Mode::linear)
    f(float(), integral_constant<int, 2>(), any, integral_constant<int, 4>());
  else if (problem.ndim <= 2)
    f(float(), integral_constant<int, 2>(), any, any);
  else if (problem.ndim == tables.low_axes)
    f(float(), integral_constant<int, 4>(), any, any);
  else
    f(float(), integral_constant<int, 4>(), integral_constant<int, 4>(), any);
}

template <class T>
BackwardPlan Kernels<T>::plan_backward(const Problem& problem, const void* grad_output,
                                       bool want_values, bool want_coords) {
  const Device device = current_device();
  BackwardPlan backward{};
  with_variant(problem, [&](auto, auto low, auto high, auto) {
    constexpr int kLow = decltype(low)::value, kHigh = decltype(high)::value;
    backward.vector = vector_of<T>(problem, grad_output, 4);
    backward.plan = plan_backward_on_chip<T, kLow>(problem, device, backward.vector, kLow + kHigh,
                                                   want_values, want_coords);
    backward.on_chip = backward.plan.tile_channels > 0;
    if (backward.on_chip) return;
    backward.vector = vector_of<T>(problem, grad_output, 16);
    backward.plan =
        plan_in_memory<Corner<int64_t, accumulator<T>, kLow>>(problem, device, backward.vector);
  });
  backward.value_parts = backward.on_chip ? backward.plan.chunks : 1;
  backward.coord_parts = backward.plan.tiles;
  return backward;
}

template <class T>
void Kernels<T>::backward(const Problem& problem, const BackwardPlan& backward, Stream stream,
                          const void* grad_output, void* value_parts, void* coord_parts) {
  using A = accumulator<T>;
  const Gradients<A> gradients{static_cast<A*>(value_parts), static_cast<A*>(coord_parts)};
  with_variant(problem, [&](auto coord, auto low, auto high, auto corners) {
    using X = decltype(coord);
    constexpr int kLow = decltype(low)::value, kHigh = decltype(high)::value;
    constexpr int kCorners = decltype(corners)::value;
    auto* kernel = backward.on_chip      ? backward_on_chip<T, X, 1, kLow, kHigh, kCorners>
                   : backward.vector > 1 ? backward_in_memory<T, X, kWide<T>, kLow, kHigh>
                                         : backward_in_memory<T, X, 1, kLow, kHigh>;
    if constexpr (kWord<T> > 1)
      if (backward.on_chip && backward.vector > 1)
        kernel = backward_on_chip<T, X, kWord<T>, kLow, kHigh, kCorners>;
    launch(kernel, backward.plan.blocks(problem), backward.plan.threads, backward.plan.shared,
           stream, problem, backward.plan, static_cast<const T*>(grad_output), gradients);
  });
}

template <class T>
void Kernels<T>::add_contributions(const Problem& problem, Stream stream, int64_t first,
                                   int64_t points, const int64_t* entries, const int64_t* order,
                                   const void* weights, const void* grad_output, void* grad_values,
                                   void* rests) {
  using A = accumulator<T>;
  const bool wide = vector_of<T>(problem, grad_output, 16) > 1;
  Plan plan{};
  plan.tables = tables_of(problem.ndim, problem.mode);
  plan.lanes = lanes_of(problem.channels / (wide ? kWide<T> : 1));
  const int64_t contributions = points * plan.tables.low * plan.tables.high;
  const int64_t groups = kThreads / plan.lanes;
  launch(wide ? crad::add_contributions<T, kWide<T>> : crad::add_contributions<T, 1>,
         ceil_div(contributions, groups), kThreads, 0, stream, problem, plan, first, contributions,
         entries, order, static_cast<const A*>(weights), static_cast<const T*>(grad_output),
         static_cast<A*>(grad_values), static_cast<A*>(rests));
  if (contributions > kPiece)
    launch(wide ? add_rests<T, kWide<T>> : add_rests<T, 1>,
           ceil_div(ceil_div(contributions, kPiece) - 1, groups), kThreads, 0, stream, problem,
           plan, contributions, entries, static_cast<A*>(grad_values),
           static_cast<const A*>(rests));
}

template <class T>
void Kernels<T>::sum_values(Stream stream, const void* parts, int64_t number, int64_t count,
                            void* to) {
  launch_sum<T, accumulator<T>>(parts, number, count, stream, to);
}

}  // namespace crad
