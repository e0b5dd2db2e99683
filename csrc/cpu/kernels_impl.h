// The loops of the CPU kernels, for whichever instruction set they are being compiled for. The file
// that includes this one sets CRAD_VECTOR_BYTES and CRAD_KERNELS, the name of the table.
#include "block.h"
#include "few_channels.h"
#include "kernels.h"
#include "pack.h"
#include "planes.h"
#include "rows.h"
#include "transpose.h"

namespace crad {
namespace {

// The grid that the points of a range lie in.
template <class T>
const T* grid_of(const Problem& problem, const Range& range) {
  const int64_t item = range.point_begin / problem.points_per_grid;  // in any order of its own
  return static_cast<const T*>(problem.values) + item * problem.grid_stride;
}

// ---- forward ----

template <bool streaming, class T>
void fill(accumulator<T> value, T* output, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  for_each_pack<A, streaming>(begin, end,
                              [&](int64_t c, auto, auto store) __attribute__((always_inline)) {
                                store(output + c, broadcast(value));
                              });
}

// output[c] = sum over N corners of weight * grid[offset + c]
template <int N, bool streaming, class Grid, class T, class At>
void blend(Grid grid, At at, T* output, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  Pack<A> w[N];
  Grid row[N];
  for (int k = 0; k < N; ++k) {
    const Inside<A> corner = at(k);
    w[k] = broadcast(corner.weight);
    row[k] = entry_at_offset(grid, corner.offset);
  }
  for_each_pack<A, streaming>(begin, end,
                              [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
                                Pack<A> total = {load(row[0] + c).lanes * w[0].lanes};
                                for (int k = 1; k < N; ++k)
                                  total = multiply_add(load(row[k] + c), w[k], total);
                                store(output + c, total);
                              });
}

template <bool streaming, class Grid, class T, class At>
void blend_many(int count, Grid grid, At at, T* output, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  for_each_pack<A, streaming>(
      begin, end, [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
        Pack<A> total = broadcast(A(0));
        for (int k = 0; k < count; ++k) {
          const Inside<A> corner = at(k);
          total = multiply_add(load(entry_at_offset(grid, corner.offset) + c),
                               broadcast(corner.weight), total);
        }
        store(output + c, total);
      });
}

// Of `count` corners, of which number k is at(k).
template <bool streaming, class Grid, class T, class At>
void blend_all(int count, Grid grid, At at, T* output, int64_t begin, int64_t end) {
  switch (count) {
    case 0:
      return fill<streaming>(accumulator<T>(0), output, begin, end);
    case 1:
      return blend<1, streaming>(grid, at, output, begin, end);
    case 2:
      return blend<2, streaming>(grid, at, output, begin, end);
    case 4:
      return blend<4, streaming>(grid, at, output, begin, end);
    case 8:
      return blend<8, streaming>(grid, at, output, begin, end);
    case 16:
      return blend<16, streaming>(grid, at, output, begin, end);
    default:
      return blend_many<streaming>(count, grid, at, output, begin, end);
  }
}

template <bool streaming, class T, class X, class Grid>
void forward(const Problem& problem, const Range& range, Grid grid, const Output& output) {
  using A = accumulator<T>;
  const Geometry<X> geometry = geometry_of<X>(problem);
  const X* coords = static_cast<const X*>(problem.coords);
  const int64_t begin = range.channel_begin, end = range.channel_end;
  Block<X> block;
  Corners<A> corners(geometry);
  Gathered<A> inside(corners.count);
  for (int64_t p = range.point_begin; p < range.point_end; p += kLanes) {
    const int points = prepare(geometry, coords, range, p, block, corners);
    for (int i = 0; i < points; ++i) {
      T* row = row_of<T>(output, block.point[i]);
      if (corners.all_inside(block, i)) {
        blend_all<streaming>(
            corners.count, grid, [&](int k) { return corners.corner(k, i); }, row, begin, end);
      } else if (block.finite[i]) {
        inside.gather(corners, block, i);
        blend_all<streaming>(
            inside.count, grid, [&](int k) { return inside.corner[k]; }, row, begin, end);
      } else {
        fill<streaming>(static_cast<A>(NAN), row, begin, end);
      }
    }
  }
}

// Whether to widen the halves of a grid once for all points of a range, and not at each of them.
bool is_widened_once(const Problem& problem, const Range& range) {
  constexpr int64_t kOften = 4, kBytes = 256 * 1024;  // as a core's cache has room for
  return is_dense(problem) && range.point_end - range.point_begin >= kOften * problem.entries &&
         problem.entries * problem.channels * static_cast<int64_t>(sizeof(float)) <= kBytes;
}

template <class T>
void widen(const Problem& problem, const Range& range, const T* grid, accumulator<T>* wide) {
  using A = accumulator<T>;
  for (int64_t entry = 0; entry < problem.entries; ++entry) {
    const int64_t row = entry * problem.channels;
    for_each_pack<A>(range.channel_begin, range.channel_end,
                     [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
                       store(wide + row + c, load(grid + row + c));
                     });
  }
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

// ---- backward ----

// For N corners at once: adds weight * grad_output to their rows of grad_values (if Values), and
// returns in `dot` the products of grad_output with their rows of the grid (if Coords).
template <int N, bool Values, bool Coords, class T, class Grid>
void splat(const T* grad_output, Grid grid, accumulator<T>* grad_values,
           const Inside<accumulator<T>>* corner, accumulator<T>* dot, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  Pack<A> w[N], products[N];
  Grid row[N];
  A* grad_row[N];
  for (int k = 0; k < N; ++k) {
    w[k] = broadcast(Values ? corner[k].weight : A(0));
    products[k] = broadcast(A(0));
    row[k] = entry_at_offset(grid, corner[k].offset);
    grad_row[k] = Values ? grad_values + corner[k].offset : nullptr;
  }
  for_each_pack<A>(begin, end,
                   [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
                     const Pack<A> grad = load(grad_output + (c - begin));
                     for (int k = 0; k < N; ++k) {
                       if (Coords) products[k] = multiply_add(grad, load(row[k] + c), products[k]);
                       if (Values)
                         store(grad_row[k] + c, multiply_add(grad, w[k], load(grad_row[k] + c)));
                     }
                   });
  if (Coords) sums(products, dot);
}

// `grad_output` begins with channel `begin`.
template <bool Values, bool Coords, class T, class Grid>
void splat_all(int count, const T* grad_output, Grid grid, accumulator<T>* grad_values,
               const Inside<accumulator<T>>* corner, accumulator<T>* dot, int64_t begin,
               int64_t end) {
  int k = 0;
  auto take = [&](auto n) {
    constexpr int N = decltype(n)::value;
    for (; k + N <= count; k += N)
      splat<N, Values, Coords>(grad_output, grid, grad_values, corner + k, dot + k, begin, end);
  };
  take(std::integral_constant<int, 8>{});
  take(std::integral_constant<int, 4>{});
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 1>{});
}

// Asks for the start of a row ahead of its use; the processor's own prefetcher follows from there.
template <class T>
void prefetch(const T* row, int64_t channels) {
  constexpr int64_t kLine = 64, kBytes = 1024;
  const char* from = reinterpret_cast<const char*>(row);
  const int64_t bytes = std::min<int64_t>(channels * static_cast<int64_t>(sizeof(T)), kBytes);
  for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(from + byte);
}

template <bool Values, bool Coords, class T, class X, class Grid>
void backward(const Problem& problem, const Range& range, Grid grid, const Gradients& gradients) {
  using A = accumulator<T>;
  const Geometry<X> geometry = geometry_of<X>(problem);
  const X* coords = static_cast<const X*>(problem.coords);
  const int64_t begin = range.channel_begin, end = range.channel_end;
  Block<X> block;
  Corners<A> corners(geometry);
  Gathered<A> inside(corners.count);
  Buffer<A> dot(corners.count);               // of grad_output with the entry of a corner inside
  Buffer<Lanes<A>> block_dot(corners.count);  // of all corners, 0 for those outside
  for (int k = 0; k < corners.count; ++k) block_dot[k] = {};
  GradientRows<T> rows(problem, range, gradients);
  for (int64_t p = range.point_begin; p < range.point_end; p += kLanes) {
    const int points = prepare(geometry, coords, range, p, block, corners);
    constexpr int64_t kAhead = kLanes;
    if (range.order && p + kAhead + kLanes <= range.point_end)
      for (int i = 0; i < kLanes; ++i) {
        const int64_t point = range.order[p + kAhead + i];
        if (!geometry.coords_strides) __builtin_prefetch(coords + point * geometry.ndim);
        rows.prefetch(point);
      }
    rows.fetch(block.point);
    for (int i = 0; i < points; ++i) {
      if (i + 1 < points) prefetch(rows[i + 1], end - begin);
      const bool all = block.finite[i] && corners.all_inside(block, i);
      if (all)
        inside.take_all(corners, i);
      else
        inside.gather(corners, block, i);
      if (!block.finite[i]) inside.count = 0;
      splat_all<Values, Coords>(inside.count, rows[i], grid, static_cast<A*>(gradients.grad_values),
                                inside.corner.get(), dot.get(), begin, end);
      if (!Coords) continue;
      if (!all)
        for (int k = 0; k < corners.count; ++k)
          block_dot[k][i] = block.finite[i] ? A(0) : static_cast<A>(NAN);
      for (int k = 0; k < inside.count; ++k) block_dot[inside.corner[k].corner][i] = dot[k];
    }
    if (!Coords) continue;
    differentiate(geometry, block, corners, block_dot, points, gradients);
  }
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
