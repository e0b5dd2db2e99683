// The loops for entries of many channels: the lanes of a vector are channels of one point.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "corners.h"
#include "kernels.h"
#include "point_rows.h"
#include "simd.h"

namespace crad {
namespace {

// ---- forward ----

template <bool streaming, class T>
void fill(accumulator<T> value, T* output, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  for_each_vector<A, streaming>(begin, end,
                                [&](int64_t c, auto, auto store) __attribute__((always_inline)) {
                                  store(output + c, broadcast(value));
                                });
}

// output[c] = sum over N corners of weight * grid[offset + c]
template <int N, bool streaming, class Grid, class T, class At>
void blend(Grid grid, At at, T* output, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  Vector<A> w[N];
  Grid row[N];
  for (int k = 0; k < N; ++k) {
    const Corner<A> corner = at(k);
    w[k] = broadcast(corner.weight);
    row[k] = entry_at_offset(grid, corner.offset);
  }
  for_each_vector<A, streaming>(
      begin, end, [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
        Vector<A> total = {load(row[0] + c).lanes * w[0].lanes};
        for (int k = 1; k < N; ++k) total = multiply_add(load(row[k] + c), w[k], total);
        store(output + c, total);
      });
}

template <bool streaming, class Grid, class T, class At>
void blend_many(int count, Grid grid, At at, T* output, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  for_each_vector<A, streaming>(
      begin, end, [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
        Vector<A> total = broadcast(A(0));
        for (int k = 0; k < count; ++k) {
          const Corner<A> corner = at(k);
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
    case 3:
      return blend<3, streaming>(grid, at, output, begin, end);
    case 4:
      return blend<4, streaming>(grid, at, output, begin, end);
    case 5:
      return blend<5, streaming>(grid, at, output, begin, end);
    case 6:
      return blend<6, streaming>(grid, at, output, begin, end);
    case 7:
      return blend<7, streaming>(grid, at, output, begin, end);
    case 8:
      return blend<8, streaming>(grid, at, output, begin, end);
    case 9:
      return blend<9, streaming>(grid, at, output, begin, end);
    case 16:
      return blend<16, streaming>(grid, at, output, begin, end);
    default:
      return blend_many<streaming>(count, grid, at, output, begin, end);
  }
}

template <bool streaming, class T, class X, class Grid>
void forward_many(const Problem& problem, const Range& range, Grid grid, const Output& output) {
  using A = accumulator<T>;
  const int64_t begin = range.channel_begin, end = range.channel_end;
  Corners<X, A> corners(problem);
  InBounds<A> inside(corners.count);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    for (int i = 0; i < points; ++i) {
      T* row = row_of<T>(output, corners.batch.point[i]);
      if (corners.all_inside(i)) {
        blend_all<streaming>(
            corners.count, grid,
            [&](int k) __attribute__((always_inline)) { return corners.corner(k, i); }, row, begin,
            end);
      } else if (corners.batch.finite[i]) {
        inside.gather(corners, i);
        blend_all<streaming>(
            inside.count, grid,
            [&](int k) __attribute__((always_inline)) { return inside.corner[k]; }, row, begin,
            end);
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
void widen(const Problem& problem, const Range& range, const T* grid, float* wide) {
  for (int64_t entry = 0; entry < problem.entries; ++entry) {
    const int64_t row = entry * problem.channels;
    for_each_vector<float>(range.channel_begin, range.channel_end,
                           [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
                             store(wide + row + c, load(grid + row + c));
                           });
  }
}

template <class T, class X>
void forward_many(const Problem& problem, const Range& range, const Output& output) {
  const T* const grid = grid_of<T>(problem, range);
  if (problem.channel_stride != 1)
    return forward_many<false, T, X>(problem, range, Spread<T>{grid, problem.channel_stride},
                                     output);
  const auto sample = [&](auto grid) {
    const auto aligned = [](int64_t bytes) { return bytes % kStreamBytes<T> == 0; };
    const int64_t element = sizeof(T);
    if (output.streaming && aligned(reinterpret_cast<intptr_t>(output.data)) &&
        aligned(problem.channels * element) && aligned(range.channel_begin * element)) {
      forward_many<true, T, X>(problem, range, grid, output);
      finish_streaming();
    } else {
      forward_many<false, T, X>(problem, range, grid, output);
    }
  };
  if constexpr (is_half<T>)
    if (is_widened_once(problem, range)) {
      Buffer<float> wide(problem.entries * problem.channels);
      widen(problem, range, grid, wide.get());
      return sample(static_cast<const float*>(wide.get()));
    }
  sample(grid);
}

// ---- backward ----

// For N corners at once: adds weight * grad_output to their rows of grad_values (if Values), and
// returns in `dot` the products of grad_output with their rows of the grid (if Coords).
template <int N, bool Values, bool Coords, class T, class Grid>
void splat(const T* grad_output, Grid grid, accumulator<T>* grad_values,
           const Corner<accumulator<T>>* corner, accumulator<T>* dot, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  Vector<A> w[N], products[N];
  Grid row[N];
  A* grad_row[N];
  for (int k = 0; k < N; ++k) {
    w[k] = broadcast(Values ? corner[k].weight : A(0));
    products[k] = broadcast(A(0));
    row[k] = entry_at_offset(grid, corner[k].offset);
    grad_row[k] = Values ? grad_values + corner[k].offset : nullptr;
  }
  for_each_vector<A>(begin, end,
                     [&](int64_t c, auto load, auto store) __attribute__((always_inline)) {
                       const Vector<A> grad = load(grad_output + (c - begin));
                       for (int k = 0; k < N; ++k) {
                         if (Coords)
                           products[k] = multiply_add(grad, load(row[k] + c), products[k]);
                         if (Values)
                           store(grad_row[k] + c, multiply_add(grad, w[k], load(grad_row[k] + c)));
                       }
                     });
  if (Coords) sums(products, dot);
}

// `grad_output` begins with channel `begin`.
template <bool Values, bool Coords, class T, class Grid>
void splat_all(int count, const T* grad_output, Grid grid, accumulator<T>* grad_values,
               const Corner<accumulator<T>>* corner, accumulator<T>* dot, int64_t begin,
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
  constexpr int64_t kBytes = 1024;
  const char* from = reinterpret_cast<const char*>(row);
  const int64_t bytes = std::min<int64_t>(channels * static_cast<int64_t>(sizeof(T)), kBytes);
  for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(from + byte);
}

template <bool Values, bool Coords, class T, class X, class Grid>
void backward_many(const Problem& problem, const Range& range, Grid grid,
                   const Gradients& gradients) {
  using A = accumulator<T>;
  const int64_t begin = range.channel_begin, end = range.channel_end;
  Corners<X, A> corners(problem);
  InBounds<A> inside(corners.count);
  Buffer<A> dot(corners.count);                  // of grad_output with the entry of a corner inside
  Buffer<PerPoint<A>> batch_dot(corners.count);  // of all corners, 0 for those outside
  for (int k = 0; k < corners.count; ++k) batch_dot[k] = {};
  GradOutputRows<T> rows(problem, range, gradients);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    prefetch_next<X>(problem, range, p, gradients, rows);
    rows.fetch(corners.batch.point);
    for (int i = 0; i < points; ++i) {
      if (i + 1 < points) prefetch(rows[i + 1], end - begin);
      const bool all = corners.batch.finite[i] && corners.all_inside(i);
      if (all)
        inside.take_all(corners, i);
      else
        inside.gather(corners, i);
      if (!corners.batch.finite[i]) inside.count = 0;
      splat_all<Values, Coords>(inside.count, rows[i], grid, static_cast<A*>(gradients.grad_values),
                                inside.corner.get(), dot.get(), begin, end);
      if (!Coords) continue;
      if (!all)
        for (int k = 0; k < corners.count; ++k)
          batch_dot[k][i] = corners.batch.finite[i] ? A(0) : static_cast<A>(NAN);
      for (int k = 0; k < inside.count; ++k) batch_dot[inside.corner[k].number][i] = dot[k];
    }
    if (!Coords) continue;
    corners.differentiate(batch_dot, points, gradients);
  }
}

// Adds to the gradient of values where its channels do not follow each other, one channel after the
// other: those of an entry may all fall into one set of a cache.
template <class A, class X>
void backward_planes(const Problem& problem, const Range& range, const Gradients& gradients) {
  Corners<X, A> corners(problem);
  Buffer<Corner<A>> inside(int64_t{kBatch} * corners.count);
  InBounds<A> list(corners.count);
  int number[kBatch];
  GradOutputRows<A> rows(problem, range, gradients);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    rows.fetch(corners.batch.point);
    for (int i = 0; i < points; ++i) {
      list.gather(corners, i);
      number[i] = corners.batch.finite[i] ? list.count : 0;
      std::copy_n(list.corner.get(), number[i], inside.get() + i * corners.count);
    }
    for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
      A* const plane = static_cast<A*>(gradients.grad_values) + c * problem.channel_stride;
      for (int i = 0; i < points; ++i)
        for (int k = 0; k < number[i]; ++k) {
          const Corner<A>& corner = inside[i * corners.count + k];
          A& to = plane[corner.offset];
          to = multiply_add(rows[i][c - range.channel_begin], corner.weight, to);
        }
    }
  }
}

template <bool Values, bool Coords, class T, class X>
void backward_many(const Problem& problem, const Range& range, const Gradients& gradients) {
  if constexpr (Values && !Coords && std::is_same_v<T, accumulator<T>>)
    if (problem.channel_stride != 1) return backward_planes<T, X>(problem, range, gradients);
  const T* const grid = grid_of<T>(problem, range);
  if constexpr (!Values)
    if (problem.channel_stride != 1)
      return backward_many<Values, Coords, T, X>(
          problem, range, Spread<T>{grid, problem.channel_stride}, gradients);
  backward_many<Values, Coords, T, X>(problem, range, grid, gradients);
}

}  // namespace
}  // namespace crad
