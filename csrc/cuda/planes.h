// Values that are not channels last, read where they lie, and the gradient of those that are
// channels first, added to where it lies. Neighbouring threads take neighbouring points, channel by
// channel: where the points of a warp read neighbouring entries, they share what is moved.
#pragma once

#include "corners.h"
#include "plan_forward.h"
#include "slopes.h"

namespace crad {

// A thread's point in the batch, and its number among the threads that share the point.
struct PlanesThread {
  int point, lane;
  CRAD_DEVICE explicit PlanesThread(const Plan& plan)
      : point(threadIdx.x % plan.batch), lane(threadIdx.x / plan.batch) {}
};

// The sum over the corners of weight * from[entry + k * stride], for `channels` of them at most.
template <class A, class T, class C>
CRAD_DEVICE void blend_planes(const Batch<C>& batch, int point, const T* from, int64_t stride,
                              int channels, A (&total)[kPlanes]) {
  constexpr int kCorners = 4;  // whose loads are on their way together
  CRAD_UNROLL
  for (int c = 0; c < kPlanes; ++c) total[c] = 0;
  for (int h = 0; h < batch.tables.high; ++h) {
    const C high = batch.high_corner(h, point);
    for (int first = 0; first < batch.tables.low; first += kCorners) {
      A weight[kCorners], value[kCorners][kPlanes];
      CRAD_UNROLL
      for (int i = 0; i < kCorners; ++i) {
        weight[i] = 0;
        int64_t entry = -1;
        if (first + i < batch.tables.low) {
          const C low = batch.low_corner(first + i, point);
          weight[i] = low.weight * high.weight;
          entry = low.entry + high.entry;
        }
        CRAD_UNROLL
        for (int c = 0; c < kPlanes; ++c)
          value[i][c] = entry >= 0 && c < channels ? widened(from[entry + c * stride]) : A(0);
        if (entry < 0) weight[i] = 0;
      }
      CRAD_UNROLL
      for (int i = 0; i < kCorners; ++i) CRAD_UNROLL
      for (int c = 0; c < kPlanes; ++c) total[c] = multiply_add(weight[i], value[i][c], total[c]);
    }
  }
}

template <class T, class X>
CRAD_KERNEL(kBlocks)
sample_planes(const Problem problem, const Plan plan, const PointStrides strides, T* output) {
  using A = accumulator<T>;
  using C = Corner<int64_t, A, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const PlanesThread thread(plan);
  const T* const grid = static_cast<const T*>(problem.values) + share.grid * problem.grid_stride;
  Batch<C> batch(plan.tables, plan.batch, memory);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = points_from(share, first, batch.points);
    batch.template fill<X, true>(problem, first, count);
    if (thread.point >= count) continue;
    T* const row = output + offset_of(problem, strides, share.grid, first + thread.point);
    for (int64_t c = share.channel_begin + thread.lane * kPlanes; c < share.channel_end;
         c += plan.lanes * kPlanes) {
      const int64_t left = share.channel_end - c;
      const int channels = static_cast<int>(left < kPlanes ? left : kPlanes);
      A total[kPlanes];
      blend_planes(batch, thread.point, grid + c * problem.channel_stride, problem.channel_stride,
                   channels, total);
      CRAD_UNROLL
      for (int k = 0; k < kPlanes; ++k) {
        if (k >= channels) continue;
        const Pack<A, 1> number{batch.place[thread.point] ? total[k] : static_cast<A>(NAN)};
        store<1, kPastCaches>(row + (c + k) * strides.channel, number);
      }
    }
  }
}

// The gradient of the values is added to atomically; it lies as they do, channels first. That of
// the coordinates is a part for every lane of every tile. kLow is 0 if it is not wanted: the values
// are then not read.
template <class T, class X, int kLow, int kHigh>
CRAD_KERNEL((kLow > 4 ? 1 : kBlocks))
backward_planes(const Problem problem, const Plan plan, const PointStrides strides,
                const T* grad_output, const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  using C = Corner<int64_t, A, (kLow > kHigh ? kLow : kHigh)>;
  constexpr bool kSlopes = kLow > 0;
  constexpr int kOwn = kSlopes ? kLow : 1;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const PlanesThread thread(plan);
  const int64_t offset = share.grid * problem.grid_stride, stride = problem.channel_stride;
  const T* const grid = static_cast<const T*>(problem.values) + offset;
  A* const sums = gradients.values ? gradients.values + offset : nullptr;
  Batch<C> batch(plan.tables, plan.batch, memory);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = points_from(share, first, batch.points);
    batch.template fill<X, true>(problem, first, count);
    if (thread.point >= count) continue;
    const bool place = batch.place[thread.point];
    const T* const row =
        grad_output + offset_of(problem, strides, share.grid, first + thread.point);
    A slope[kOwn + kHigh] = {};
    for (int64_t c = share.channel_begin + thread.lane * kPlanes; place && c < share.channel_end;
         c += plan.lanes * kPlanes) {
      const int64_t left = share.channel_end - c;
      A grad[kPlanes];
      CRAD_UNROLL
      for (int k = 0; k < kPlanes; ++k)
        grad[k] = k < left ? widened(row[(c + k) * strides.channel]) : A(0);
      for (int h = 0; h < batch.tables.high; ++h) {
        const C high = batch.high_corner(h, thread.point);
        Slopes<A, kOwn, kHigh> slopes_of_high;
        for (int l = 0; l < batch.tables.low; ++l) {
          const C low = batch.low_corner(l, thread.point);
          if (low.entry + high.entry < 0) continue;
          const int64_t at = low.entry + high.entry + c * stride;
          if constexpr (kSlopes) {
            A product = 0;
            CRAD_UNROLL
            for (int k = 0; k < kPlanes; ++k)
              if (k < left)
                product = multiply_add(grad[k], widened(grid[at + k * stride]), product);
            slopes_of_high.add(low, product);
          }
          if (!sums) continue;
          const A weight = low.weight * high.weight;
          CRAD_UNROLL
          for (int k = 0; k < kPlanes; ++k)
            if (k < left) atomicAdd(sums + at + k * stride, weight * grad[k]);
        }
        if constexpr (kSlopes) slopes_of_high.add_to(slope, high);
      }
    }
    if constexpr (kSlopes)
      store_slopes<kLow>(
          problem, plan.tables, slope, place,
          gradients.of_point(problem, share.tile * plan.lanes + thread.lane, first + thread.point));
  }
}

}  // namespace crad
