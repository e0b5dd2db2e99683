// The gradients for a grid whose share is staged in shared memory. A thread owns channels: it walks
// points in order and adds to its own column, so no addition has to be atomic, and the sums are the
// same in every run. Where channels are few, a block has several groups of such threads;
// each takes its own points.
#pragma once

#include "forward.h"
#include "slopes.h"

namespace crad {

// Adds weight * grad to the sums of the corners, which are the thread's own. Where no two corners
// are of one entry, all loads come before the first store.
template <int V, class Corners, class A>
CRAD_DEVICE void add_to_own(const Corners& some, A high_weight, const Pack<A, V>& grad, A* sums,
                            int64_t pitch, bool distinct) {
  if (distinct) {
    Pack<A, V> total[Corners::kCorners];
    CRAD_UNROLL
    for (int i = 0; i < Corners::kCorners; ++i)
      total[i] = some.corner[i].entry >= 0 ? load<V>(sums + some.corner[i].entry * pitch)
                                           : filled<A, V>(0);
    CRAD_UNROLL
    for (int i = 0; i < Corners::kCorners; ++i) {
      if (some.corner[i].entry < 0) continue;
      add_product(some.corner[i].weight * high_weight, grad, total[i]);
      store<V>(sums + some.corner[i].entry * pitch, total[i]);
    }
    return;
  }
  for (int i = 0; i < Corners::kCorners; ++i) {
    if (some.corner[i].entry < 0) continue;
    A* const to = sums + some.corner[i].entry * pitch;
    Pack<A, V> total = load<V>(to);
    add_product(some.corner[i].weight * high_weight, grad, total);
    store<V>(to, total);
  }
}

// The corner of a high table without components.
template <class C>
CRAD_DEVICE C unit_corner() {
  C corner{};
  corner.weight = 1;
  return corner;
}

// kCorners: of a point, all in the low table; 0: not known to the compiler.
template <class T, class X, int V, int kLow, int kHigh, int kCorners>
CRAD_KERNEL((kBlocksFor<accumulator<T>, V, X, kLow>))
backward_on_chip(const Problem problem, const Plan plan, const T* grad_output,
                 const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  using C = Corner<int32_t, A, (kLow > kHigh ? kLow : kHigh)>;
  using Corners = Gathered<V, C, T>;
  constexpr int kSlopes = kLow + kHigh;
  constexpr int kTogether = kSums / kSlopes;  // points
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const int channels = channels_of(share);
  const Group group(plan);
  const int warps = (plan.lanes + kWarp - 1) / kWarp;  // that share a point
  const int c = group.lane * V;  // the thread's own channels, if there are so many
  const bool own = c < channels;
  const bool distinct = taps_follow_each_other(problem);

  char* at = memory;
  // Of grad_values, (entries, groups, tile_channels): a thread adds to its own column.
  A* const sums = reinterpret_cast<A*>(at);
  const int tile = static_cast<int>(plan.tile_channels), pitch = group.count * tile;
  A* const column = sums + group.index * tile + c;
  if (gradients.values) at += rounded_up(problem.entries * pitch * sizeof(A));
  T* const staged = reinterpret_cast<T*>(at);
  if (gradients.coords) at += rounded_up(problem.entries * tile * sizeof(T));
  A* const slopes = reinterpret_cast<A*>(at);  // (points, kSlopes, warps)
  if (gradients.coords) at += rounded_up(plan.batch * kSlopes * warps * sizeof(A));
  Batch<C> batch(plan.tables, plan.batch, at);

  if (gradients.coords) stage<V>(problem, plan, share, staged);
  if (gradients.values && own)
    for (int entry = 0; entry < problem.entries; ++entry)
      store<V>(column + entry * pitch, filled<A, V>(0));

  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = points_from(share, first, batch.points);
    batch.template fill<X>(problem, first, count);
    const T* const rows = grad_output + first * problem.channels + share.channel_begin + c;
    // The gradients of the points that come next, on their way while the others are worked on.
    Pack<A, V> next[kTogether];
    const auto fetch = [&](int turn) {
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        const int point = turn + j * group.count + group.index;
        next[j] = own && point < count ? load<V>(rows + point * problem.channels) : filled<A, V>(0);
      }
    };
    fetch(0);
    // All threads of a warp take every turn: they exchange sums.
    for (int turn = 0; turn < count; turn += group.count * kTogether) {
      Pack<A, V> grad[kTogether];
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j) grad[j] = next[j];
      fetch(turn + group.count * kTogether);
      A slope[kSums];
      CRAD_UNROLL
      for (int i = 0; i < kSums; ++i) slope[i] = 0;
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        const int point = turn + j * group.count + group.index;
        if (!own || point >= count || !batch.place[point]) continue;
        const int highs = kCorners > 0 ? 1 : plan.tables.high;
        const int lows = kCorners > 0 ? kCorners : plan.tables.low;
        for (int h = 0; h < highs; ++h) {
          const C high = kCorners > 0 ? unit_corner<C>() : batch.high_corner(h, point);
          Slopes<A, kLow, kHigh> slopes_of_high;
          for (int low = 0; low < lows; low += Corners::kCorners) {
            const Corners some(batch, point, low, lows, high, staged + c, tile,
                               gradients.coords != nullptr);
            if (gradients.values)
              add_to_own<V>(some, high.weight, grad[j], column, pitch, distinct);
            if (gradients.coords) {
              CRAD_UNROLL
              for (int i = 0; i < Corners::kCorners; ++i)
                slopes_of_high.add(some.corner[i], dot(grad[j], some.value[i]));
            }
          }
          slopes_of_high.add_to(slope + j * kSlopes, high);
        }
      }
      if (!gradients.coords) continue;
      sum_over_lanes(slope, plan.lanes);
      for_each_sum(slope, group.lane, plan.lanes, [&](int i, A sum) {
        const int point = turn + i / kSlopes * group.count + group.index;
        if (i < kTogether * kSlopes && point < count)
          slopes[(point * kSlopes + i % kSlopes) * warps + group.lane / kWarp] = sum;
      });
    }
    if (!gradients.coords) continue;
    __syncthreads();
    for (int i = threadIdx.x; i < count * problem.ndim; i += blockDim.x) {
      const int point = i / problem.ndim, d = i % problem.ndim;
      const int k = d < plan.tables.low_axes ? d : kLow + d - plan.tables.low_axes;
      A total = 0;
      for (int w = 0; w < warps; ++w) total += slopes[(point * kSlopes + k) * warps + w];
      gradients.of_point(problem, share.tile, first)[i] =
          batch.place[point] ? total : static_cast<A>(NAN);
    }
  }

  if (gradients.values)
    sum_groups(problem, channels, sums, group.count, tile, pitch,
               gradients.of_share(problem, share));
}

}  // namespace crad
