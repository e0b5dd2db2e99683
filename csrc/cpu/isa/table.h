// The table of the CPU kernels of one instruction set. Its header, included before, sets
// CRAD_VECTOR_BYTES and the names of the tables, CRAD_KERNELS and (level_loops.h)
// CRAD_LEVEL_KERNELS.
#include "../few_channels.h"
#include "../kernels.h"
#include "../lane_backward.h"
#include "../lane_bounds.h"
#include "../lane_forward.h"
#include "../many_channels.h"
#include "../tap_rows.h"
#include "../transpose.h"

namespace crad {
namespace {

// ---- which loops take a range ----

template <class T, class X>
void forward(const Problem& problem, const Range& range, const Output& output) {
  if constexpr (!std::is_same_v<T, double> && std::is_same_v<X, float>)
    if (problem.point_lanes) return forward_lanes(problem, range, output);
#if CRAD_VECTOR_BYTES > 16
  if constexpr (std::is_same_v<T, float>)
    if (forward_tap_rows<X>(problem, range, output)) return;
#endif
  if constexpr (!is_half<T>)
    if (problem.channels <= kFewChannels) return forward_few<T, X>(problem, range, output);
  forward_many<T, X>(problem, range, output);
}

template <bool Values, bool Coords, class T, class X>
void backward(const Problem& problem, const Range& range, const Gradients& gradients) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<X, float>)
    if (problem.point_lanes) return backward_lanes<Values, Coords>(problem, range, gradients);
#if CRAD_VECTOR_BYTES > 16
  if constexpr (std::is_same_v<T, float>)
    if (backward_tap_rows<Values, Coords, X>(problem, range, gradients)) return;
#endif
  if constexpr (!is_half<T>)
    if (problem.channels <= kFewChannels)
      return backward_few<Values, Coords, T, X>(problem, range, gradients);
  backward_many<Values, Coords, T, X>(problem, range, gradients);
}

// ---- from run-time types to compile-time ones ----

void forward(const Problem& problem, const Range& range, const Output& output) {
  with_value_type(problem.value_type, [&](auto value) {
    with_coord_type(problem.coord_type, [&](auto coord) {
      forward<decltype(value), decltype(coord)>(problem, range, output);
    });
  });
}

void backward(const Problem& problem, const Range& range, const Gradients& gradients) {
  with_value_type(problem.value_type, [&](auto value) {
    with_coord_type(problem.coord_type, [&](auto coord) {
      using T = decltype(value);
      using X = decltype(coord);
      if (gradients.grad_values && gradients.grad_coords)
        backward<true, true, T, X>(problem, range, gradients);
      else if (gradients.grad_values)
        backward<true, false, T, X>(problem, range, gradients);
      else if (gradients.grad_coords)
        backward<false, true, T, X>(problem, range, gradients);
    });
  });
}

void locate_parts(const Problem& problem, const Bands& bands, const Range& range, int32_t* part) {
  with_coord_type(problem.coord_type,
                  [&](auto coord) { locate_parts<decltype(coord)>(problem, bands, range, part); });
}

// ---- sums of partial results ----

void sum(ValueType type, const void* parts, int64_t number, int64_t stride, void* to,
         int64_t count) {
  with_value_type(type, [&](auto value) {
    using T = decltype(value);
    using A = accumulator<T>;
    const A* const from = static_cast<const A*>(parts);
    for_each_vector<A>(0, count,
                       [&](int64_t i, auto load, auto store) __attribute__((always_inline)) {
                         Vector<A> total = load(from + i);
                         for (int64_t part = 1; part < number; ++part)
                           total.lanes += load(from + part * stride + i).lanes;
                         store(static_cast<T*>(to) + i, total);
                       });
  });
}

}  // namespace

const Kernels CRAD_KERNELS = {forward,          backward,           bounds, locate_parts, sum,
                              transpose_matrix, &CRAD_LEVEL_KERNELS};

}  // namespace crad
