// The loops for entries of many channels: the lanes of a vector are channels of one point.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "grad_output.h"
#include "kernels.h"
#include "locate.h"
#include "simd.h"

namespace crad {
namespace {

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

}  // namespace
}  // namespace crad
