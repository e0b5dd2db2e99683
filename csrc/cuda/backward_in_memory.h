// The gradients for a large grid, or one of few points: neighbouring threads share a point, and add
// to the gradient of the values atomically.
#pragma once

#include "corners.h"
#include "slopes.h"

namespace crad {

template <class T, class X, int V, int kLow, int kHigh>
CRAD_KERNEL((kBlocksFor<accumulator<T>, V, X, kLow>))
backward_in_memory(const Problem problem, const Plan plan, const T* grad_output,
                   const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  using C = Corner<int64_t, A, (kLow > kHigh ? kLow : kHigh)>;
  using Corners = Gathered<V, C, T>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const Group group(plan);
  const int64_t offset = share.grid * problem.entries * problem.channels + share.channel_begin;
  const T* const grid = static_cast<const T*>(problem.values) + offset;
  A* const sums = gradients.values ? gradients.values + offset : nullptr;
  Batch<C> batch(plan.tables, plan.batch, memory);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = points_from(share, first, batch.points);
    batch.template fill<X>(problem, first, count);
    // All threads of a warp take every turn: they exchange sums.
    for (int turn = 0; turn < count; turn += group.count) {
      const int point = turn + group.index;
      const bool place = point < count && batch.place[point];
      A slope[kLow + kHigh] = {};
      for (int c = group.lane * V; place && c < channels_of(share); c += plan.lanes * V) {
        const Pack<A, V> grad =
            load<V>(grad_output + (first + point) * problem.channels + share.channel_begin + c);
        for (int h = 0; h < plan.tables.high; ++h) {
          const C high = batch.high_corner(h, point);
          Slopes<A, kLow, kHigh> slopes_of_high;
          for (int low = 0; low < plan.tables.low; low += Corners::kCorners) {
            const Corners some(batch, point, low, plan.tables.low, high, grid + c, problem.channels,
                               gradients.coords != nullptr);
            CRAD_UNROLL
            for (int i = 0; i < Corners::kCorners; ++i) {
              slopes_of_high.add(some.corner[i], dot(grad, some.value[i]));
              if (!sums || some.corner[i].entry < 0) continue;
              Pack<A, V> share_of_grad = filled<A, V>(0);
              add_product(some.corner[i].weight * high.weight, grad, share_of_grad);
              add_atomically<V>(sums + some.corner[i].entry * problem.channels + c, share_of_grad);
            }
          }
          slopes_of_high.add_to(slope, high);
        }
      }
      if (!gradients.coords) continue;
      CRAD_UNROLL
      for (int d = 0; d < kLow + kHigh; ++d)
        for (int bit = 1; bit < plan.lanes; bit *= 2)
          slope[d] += __shfl_xor_sync(kWholeWarp, slope[d], bit);
      if (group.lane == 0 && point < count)
        store_slopes<kLow>(problem, plan.tables, slope, place,
                           gradients.of_point(problem, share.tile, first + point));
    }
  }
}

}  // namespace crad
