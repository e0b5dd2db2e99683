// The table of the CPU kernels, for whichever instruction set they are being compiled for. The file
// that includes this one sets CRAD_VECTOR_BYTES and CRAD_KERNELS, the name of the table.
#include "../few_channels.h"
#include "../kernels.h"
#include "../many_channels.h"
#include "../planar.h"
#include "../tap_rows.h"
#include "../transpose.h"

namespace crad {
namespace {

// The grid that the points of a range lie in.
template <class T>
const T* grid_of(const Problem& problem, const Range& range) {
  const int64_t item = range.point_begin / problem.points_per_grid;  // in any order of its own
  return static_cast<const T*>(problem.values) + item * problem.grid_stride;
}

template <class T, class X>
void forward_any(const Problem& problem, const Range& range, const Output& output) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<X, float>)
    if (problem.planes) return forward_planes(problem, range, grid_of<T>(problem, range), output);
  constexpr bool unconverted = std::is_same_v<T, accumulator<T>>;
  if constexpr (unconverted)
    if (problem.channels <= kFewChannels)
      return forward_few<T, X>(problem, range, grid_of<T>(problem, range), output);
  const auto aligned = [](int64_t elements) {
    return elements * static_cast<int64_t>(sizeof(T)) % kStreamBytes<T> == 0;
  };
  const bool streaming = output.streaming &&
                         reinterpret_cast<intptr_t>(output.data) % kStreamBytes<T> == 0 &&
                         aligned(problem.channels) && aligned(range.channel_begin);
  const auto sample = [&](auto grid) {
    if (streaming) {
      forward<true, T, X>(problem, range, grid, output);
      finish_streaming();
    } else {
      forward<false, T, X>(problem, range, grid, output);
    }
  };
  const T* const grid = grid_of<T>(problem, range);
  if (problem.channel_stride != 1)
    return forward<false, T, X>(problem, range, Spread<T>{grid, problem.channel_stride}, output);
  if constexpr (!unconverted)
    if (is_widened_once(problem, range)) {
      Buffer<accumulator<T>> wide(problem.entries * problem.channels);
      widen(problem, range, grid, wide.get());
      return sample(static_cast<const accumulator<T>*>(wide.get()));
    }
  sample(grid);
}

template <bool Values, bool Coords, class T, class X>
void backward_some(const Problem& problem, const Range& range, const Gradients& gradients) {
  const T* const grid = grid_of<T>(problem, range);
  if (backward_in_rows<Values, Coords, X>(problem, range, grid, gradients)) return;
  if constexpr (std::is_same_v<T, accumulator<T>>)
    if (problem.channels <= kFewChannels)
      return backward_few<Values, Coords, T, X>(problem, range, grid, gradients);
  if constexpr (!Values)
    if (problem.channel_stride != 1)
      return backward<Values, Coords, T, X>(problem, range, Spread<T>{grid, problem.channel_stride},
                                            gradients);
  backward<Values, Coords, T, X>(problem, range, grid, gradients);
}

template <class T, class X>
void backward_any(const Problem& problem, const Range& range, const Gradients& gradients) {
  if (gradients.grad_values && gradients.grad_coords)
    backward_some<true, true, T, X>(problem, range, gradients);
  else if (gradients.grad_values)
    backward_some<true, false, T, X>(problem, range, gradients);
  else if (gradients.grad_coords)
    backward_some<false, true, T, X>(problem, range, gradients);
}

// ---- the order of points ----

// The lowest entry along an axis that each point reads, in the grid.
template <class X>
void lowest_entries(const Geometry<X>& geometry, int axis, Block<X>& block,
                    int64_t (&lowest)[kLanes]) {
  locate_along(geometry, axis, block);
  const bool follow = taps_follow_each_other(geometry.mode, geometry.padding);
  const int taps = follow ? 1 : tap_count(geometry.mode);
  const int64_t last = geometry.size[axis] - 1;
  for (int i = 0; i < kLanes; ++i) {
    int64_t entry = block.offset[axis][0][i];
    for (int tap = 1; tap < taps; ++tap) entry = std::min(entry, block.offset[axis][tap][i]);
    lowest[i] = std::max<int64_t>(0, std::min(entry, last));
  }
}

template <class X>
void locate_parts(const Problem& problem, const Bands& bands, int64_t begin, int64_t end,
                  int32_t* part) {
  Geometry<X> geometry = geometry_of<X>(problem);
  for (int axis = 0; axis < geometry.ndim; ++axis) geometry.stride[axis] = 1;
  Block<X> block;
  for (int64_t p = begin; p < end; p += kLanes) {
    const int points =
        fetch(geometry, static_cast<const X*>(problem.coords), nullptr, p, end - p, block);
    int64_t first[kLanes], second[kLanes] = {};
    lowest_entries(geometry, bands.axis, block, first);
    if (bands.second >= 0) lowest_entries(geometry, bands.second, block, second);
    for (int i = 0; i < points; ++i)
      part[p + i] = static_cast<int32_t>((first[i] >> bands.shift) * bands.second_number +
                                         (second[i] >> bands.second_shift));
  }
}

// ---- sums of partial results ----

template <class T, class A>
void sum_parts(const void* parts, int64_t number, int64_t stride, void* to, int64_t begin,
               int64_t end) {
  const A* from = static_cast<const A*>(parts);
  for_each_pack<A>(begin, end,
                   [&](int64_t i, auto load, auto store) __attribute__((always_inline)) {
                     Pack<A> total = load(from + i);
                     for (int64_t part = 1; part < number; ++part)
                       total.lanes += load(from + part * stride + i).lanes;
                     store(static_cast<T*>(to) + i, total);
                   });
}

// ---- from run-time types to compile-time ones ----

template <class T>
struct Tag {
  using type = T;
};

template <class F>
void with_value_type(ValueType type, F f) {
  switch (type) {
    case ValueType::float64:
      return f(Tag<double>{});
    case ValueType::float32:
      return f(Tag<float>{});
    case ValueType::bfloat16:
      return f(Tag<bfloat16>{});
    case ValueType::float16:
      return f(Tag<float16>{});
  }
}

template <class F>
void with_coord_type(CoordType type, F f) {
  type == CoordType::float64 ? f(Tag<double>{}) : f(Tag<float>{});
}

template <class F>
void with_types(const Problem& problem, F f) {
  with_value_type(problem.value_type, [&](auto value) {
    with_coord_type(problem.coord_type, [&](auto coord) { f(value, coord); });
  });
}

void forward_typed(const Problem& problem, const Range& range, const Output& output) {
  with_types(problem, [&](auto value, auto coord) {
    forward_any<typename decltype(value)::type, typename decltype(coord)::type>(problem, range,
                                                                                output);
  });
}

void backward_typed(const Problem& problem, const Range& range, const Gradients& gradients) {
  with_types(problem, [&](auto value, auto coord) {
    backward_any<typename decltype(value)::type, typename decltype(coord)::type>(problem, range,
                                                                                 gradients);
  });
}

void locate_parts_typed(const Problem& problem, const Bands& bands, int64_t begin, int64_t end,
                        int32_t* part) {
  with_coord_type(problem.coord_type, [&](auto coord) {
    locate_parts<typename decltype(coord)::type>(problem, bands, begin, end, part);
  });
}

void sum_values(ValueType type, const void* parts, int64_t number, int64_t stride, void* to,
                int64_t begin, int64_t end) {
  with_value_type(type, [&](auto value) {
    using T = typename decltype(value)::type;
    sum_parts<T, accumulator<T>>(parts, number, stride, to, begin, end);
  });
}

void sum_coords(CoordType type, const void* parts, int64_t number, int64_t stride, void* to,
                int64_t begin, int64_t end) {
  with_coord_type(type, [&](auto coord) {
    using X = typename decltype(coord)::type;
    sum_parts<X, X>(parts, number, stride, to, begin, end);
  });
}

}  // namespace

const Kernels CRAD_KERNELS = {forward_typed, backward_typed, locate_parts_typed,
                              sum_values,    sum_coords,     transpose_matrix};

}  // namespace crad
