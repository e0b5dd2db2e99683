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

// Of `count` corners, of which number k is at(k), with loops for some numbers of them.
template <bool streaming, int... some, class Grid, class T, class At>
CRAD_ALWAYS_INLINE void blend_all(int count, Grid grid, At at, T* output, int64_t begin,
                                  int64_t end) {
  const bool done =
      ((count == some && (blend<some, streaming>(grid, at, output, begin, end), true)) || ...);
  if (!done) blend_many<streaming>(count, grid, at, output, begin, end);
}

// The samples of a batch, of which there are `points`.
template <bool streaming, class T, class A, class Grid>
__attribute__((noinline)) void blend_batch(const CornersOfBatch<A>& corners, int points, Grid grid,
                                           const Range& range, InBounds<A>& inside,
                                           const Output& output) {
  // Locals, so that the compiler need not expect a store to change them.
  const int64_t begin = range.channel_begin, end = range.channel_end;
  const int64_t row = output.row;
  T* const first = row_of<T>(output, 0);
  const BatchOfPoints& batch = corners.points;
  const PerPoint<int64_t>* const offset = corners.offset.get();
  const PerPoint<A>* const weight = corners.weight.get();
  const int64_t* const step = corners.step.get();
  const Corner<A>* const some = inside.corner.get();
  const bool follow = corners.follow;
  const int count = corners.count;
  for (int i = 0; i < points; ++i) {
    T* const to = first + batch.point[i] * row;
    if (corners.all_inside(i)) {
      const int64_t entry = offset[0][i];
      blend_all<streaming, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16>(
          count, grid,
          [&](int k) __attribute__((always_inline)) {
            return Corner<A>{follow ? entry + step[k] : offset[k][i], weight[k][i], k};
          },
          to, begin, end);
    } else if (batch.finite[i]) {
      inside.gather(corners, i);
      blend_all<streaming, 1, 2, 4, 8>(
          inside.count, grid, [&](int k) __attribute__((always_inline)) { return some[k]; }, to,
          begin, end);
    } else {
      fill<streaming>(static_cast<A>(NAN), to, begin, end);
    }
  }
}

template <bool streaming, class T, class X, class Grid>
void forward_many(const Problem& problem, const Range& range, Grid grid, const Output& output) {
  using A = accumulator<T>;
  Corners<X, A> corners(problem);
  InBounds<A> inside(corners.count);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    blend_batch<streaming, T, A>(corners, points, grid, range, inside, output);
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
    constexpr bool can_stream = CRAD_VECTOR_BYTES > 16;
    if (can_stream && output.streaming && aligned(reinterpret_cast<intptr_t>(output.data)) &&
        aligned(problem.channels * element) && aligned(range.channel_begin * element)) {
      forward_many<can_stream, T, X>(problem, range, grid, output);
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

// Of a batch, of which there are `points`: adds to grad_values, and sets the products of
// grad_output with the entries of all corners, 0 for those outside. `dot` has room for those of a
// point.
template <bool Values, bool Coords, class T, class A, class Grid>
__attribute__((noinline)) void splat_batch(const CornersOfBatch<A>& corners, int points,
                                           const GradOutputRows<T>& rows, Grid grid,
                                           const Range& range, A* grad_values, InBounds<A>& inside,
                                           A* dot, PerPoint<A>* batch_dot) {
  const int64_t begin = range.channel_begin, end = range.channel_end;
  for (int i = 0; i < points; ++i) {
    if (i + 1 < points) prefetch(rows[i + 1], end - begin);
    const bool finite = corners.points.finite[i] != 0, all = finite && corners.all_inside(i);
    if (all)
      inside.take_all(corners, i);
    else
      inside.gather(corners, i);
    if (!finite) inside.count = 0;
    splat_all<Values, Coords>(inside.count, rows[i], grid, grad_values, inside.corner.get(), dot,
                              begin, end);
    if (!Coords) continue;
    if (!all)
      for (int k = 0; k < corners.count; ++k) batch_dot[k][i] = finite ? A(0) : static_cast<A>(NAN);
    for (int k = 0; k < inside.count; ++k) batch_dot[inside.corner[k].number][i] = dot[k];
  }
}

template <bool Values, bool Coords, class T, class X, class Grid>
void backward_many(const Problem& problem, const Range& range, Grid grid,
                   const Gradients& gradients) {
  using A = accumulator<T>;
  Corners<X, A> corners(problem);
  InBounds<A> inside(corners.count);
  Buffer<A> dot(corners.count);
  Buffer<PerPoint<A>> batch_dot(corners.count);
  for (int k = 0; k < corners.count; ++k) batch_dot[k] = {};
  GradOutputRows<T> rows(problem, range, gradients);
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = corners.prepare(range, p);
    prefetch_next<X>(problem, range, p, gradients, rows);
    rows.fetch(corners.batch.point);
    splat_batch<Values, Coords>(corners, points, rows, grid, range,
                                static_cast<A*>(gradients.grad_values), inside, dot.get(),
                                batch_dot.get());
    if (Coords) corners.differentiate(batch_dot, points, gradients);
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
