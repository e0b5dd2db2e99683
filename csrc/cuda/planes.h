// The sample of values that are not channels last, and the gradient of those that are channels
// first, read and added to where they lie. Neighbouring threads take neighbouring points, channel
// by channel: where the points of a warp read neighbouring entries, they share what is moved.
#pragma once

#include "corners.h"

namespace crad {

// The point of a thread in its batch, and which of the threads that share it this one is.
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
sample_planes(const Problem problem, const Plan plan, const Rows rows, T* output) {
  using A = accumulator<T>;
  using C = Corner<int64_t, A, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const PlanesThread thread(plan);
  const T* const grid = static_cast<const T*>(problem.values) + share.grid * problem.grid_stride;
  Batch<C> batch(plan.tables, plan.batch, memory);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = static_cast<int>(
        share.point_end - first < batch.points ? share.point_end - first : batch.points);
    batch.template fill<X, true>(problem, first, count);
    if (thread.point >= count) continue;
    T* const row = output + offset_of(problem, rows, share.grid, first + thread.point);
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
        store_past_caches<1>(row + (c + k) * rows.channel, number);
      }
    }
  }
}

// Adds to the zeroed gradient of the values, (grids, channels, entries), atomically.
template <class T, class X>
CRAD_KERNEL(kBlocks)
add_planes(const Problem problem, const Plan plan, const Rows rows, const T* grad_output,
           accumulator<T>* grad_values) {
  using A = accumulator<T>;
  using C = Corner<int64_t, A, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const PlanesThread thread(plan);
  A* const grid = grad_values + share.grid * problem.channels * problem.entries;
  Batch<C> batch(plan.tables, plan.batch, memory);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = static_cast<int>(
        share.point_end - first < batch.points ? share.point_end - first : batch.points);
    batch.template fill<X>(problem, first, count);
    if (thread.point >= count || !batch.place[thread.point]) continue;
    const T* const row = grad_output + offset_of(problem, rows, share.grid, first + thread.point);
    for (int64_t c = share.channel_begin + thread.lane * kPlanes; c < share.channel_end;
         c += plan.lanes * kPlanes) {
      A grad[kPlanes];
      CRAD_UNROLL
      for (int k = 0; k < kPlanes; ++k)
        grad[k] = c + k < share.channel_end ? widened(row[(c + k) * rows.channel]) : A(0);
      for (int h = 0; h < batch.tables.high; ++h) {
        const C high = batch.high_corner(h, thread.point);
        for (int l = 0; l < batch.tables.low; ++l) {
          const C low = batch.low_corner(l, thread.point);
          const int64_t entry = low.entry + high.entry;
          if (entry < 0) continue;
          const A weight = low.weight * high.weight;
          CRAD_UNROLL
          for (int k = 0; k < kPlanes; ++k)
            if (c + k < share.channel_end)
              atomicAdd(grid + (c + k) * problem.entries + entry, weight * grad[k]);
        }
      }
    }
  }
}

}  // namespace crad
