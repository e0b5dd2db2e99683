// The gradients for a grid whose share is staged in shared memory. A thread owns channels: it walks
// the block's points in order and adds to its own column, so there is nothing to be atomic about,
// and the sums are the same in every run.
#pragma once

#include "forward.h"
#include "gradients.h"

namespace crad {

constexpr int kSums = 8;  // that a warp takes together

// The sums of n numbers over the lanes of a warp, in n - 1 exchanges and a few instead of 5 n: at
// each, a lane gives away half of its numbers and adds what it is given to the others. Afterwards
// v[0] of a lane is the sum of number `index_of_sum(lane)`.
template <class A>
CRAD_DEVICE void sum_over_warp(A (&v)[kSums]) {
  const int lane = threadIdx.x % 32;
  constexpr unsigned all = 0xFFFFFFFF;
  CRAD_UNROLL
  for (int half = kSums / 2, bit = 1; half > 0; half /= 2, bit *= 2) {
    const bool upper = lane & bit;
    CRAD_UNROLL
    for (int i = 0; i < half; ++i) {
      const A given = upper ? v[i] : v[i + half];
      const A kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(all, given, bit);
    }
  }
  CRAD_UNROLL
  for (int bit = kSums; bit < 32; bit *= 2) v[0] += __shfl_xor_sync(all, v[0], bit);
}

CRAD_DEVICE int index_of_sum(int lane) { return (lane & 1) * 4 + (lane & 2) + ((lane & 4) != 0); }

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

// That of a high table that has no components.
template <class C>
CRAD_DEVICE C unit_corner() {
  C corner{};
  corner.weight = 1;
  return corner;
}

// kCorners of a point, all in the low table; 0 if the compiler is not to know.
template <class T, class X, int V, int kLow, int kHigh, int kCorners>
CRAD_KERNEL((kBlocksFor<accumulator<T>, V>))
backward_on_chip(const Problem problem, const Plan plan, const T* grad_output,
                 const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  using C = Corner<int32_t, A, (kLow > kHigh ? kLow : kHigh)>;
  using Corners = Gathered<V, C, T>;
  constexpr int kSlopes = kLow + kHigh;
  constexpr int kTogether = kSums / kSlopes;  // points
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const int channels = static_cast<int>(share.channel_end - share.channel_begin);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int c = threadIdx.x * V;  // the thread's own channels, if there are so many
  const bool own = c < channels;
  const bool distinct = taps_follow_each_other(problem.mode, problem.padding);

  char* at = memory;
  A* const sums = reinterpret_cast<A*>(at);  // of grad_values, in the thread's own columns
  if (gradients.values) at += rounded_up(problem.entries * plan.tile_channels * sizeof(A));
  T* const staged = reinterpret_cast<T*>(at);
  if (gradients.coords) at += rounded_up(problem.entries * plan.tile_channels * sizeof(T));
  A* const slopes = reinterpret_cast<A*>(at);  // (points, kSlopes, warps)
  if (gradients.coords) at += rounded_up(plan.batch * kSlopes * warps * sizeof(A));
  Batch<C> batch(plan.tables, plan.batch, at);

  if (gradients.coords) stage<V>(problem, plan, share, staged);
  if (gradients.values && own)
    for (int entry = 0; entry < problem.entries; ++entry)
      store<V>(sums + entry * plan.tile_channels + c, filled<A, V>(0));

  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = static_cast<int>(
        share.point_end - first < batch.points ? share.point_end - first : batch.points);
    batch.template fill<X>(problem, first, count);
    const T* const rows = grad_output + first * problem.channels + share.channel_begin + c;
    // The gradients of the points that come next, on their way while the others are worked on.
    Pack<A, V> next[kTogether];
    const auto fetch = [&](int point) {
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j)
        next[j] = own && point + j < count ? load<V>(rows + (point + j) * problem.channels)
                                           : filled<A, V>(0);
    };
    fetch(0);
    for (int point = 0; point < count; point += kTogether) {
      Pack<A, V> grad[kTogether];
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j) grad[j] = next[j];
      fetch(point + kTogether);
      A slope[kSums];
      CRAD_UNROLL
      for (int i = 0; i < kSums; ++i) slope[i] = 0;
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        if (!own || point + j >= count || !batch.place[point + j]) continue;
        const int highs = kCorners > 0 ? 1 : plan.tables.high;
        const int lows = kCorners > 0 ? kCorners : plan.tables.low;
        for (int h = 0; h < highs; ++h) {
          const C high = kCorners > 0 ? unit_corner<C>() : batch.high_corner(h, point + j);
          Slopes<A, kLow, kHigh> slopes_of_high;
          for (int low = 0; low < lows; low += Corners::kCorners) {
            const Corners some(batch, point + j, low, lows, high, staged + c, plan.tile_channels,
                               gradients.coords != nullptr);
            if (gradients.values)
              add_to_own<V>(some, high.weight, grad[j], sums + c, plan.tile_channels, distinct);
            if (gradients.coords) {
              CRAD_UNROLL
              for (int i = 0; i < Corners::kCorners; ++i)
                slopes_of_high.add(some.corner[i], dot(grad[j], some.value[i]));
            }
          }
          slopes_of_high.add_to(slope + j * kSlopes, high);
        }
      }
      if (gradients.coords) {
        sum_over_warp(slope);
        const int i = index_of_sum(lane);
        if (lane < kSums && i < kTogether * kSlopes && point + i / kSlopes < count)
          slopes[(point * kSlopes + i) * warps + warp] = slope[0];
      }
    }
    if (!gradients.coords) continue;
    __syncthreads();
    for (int i = threadIdx.x; i < count * problem.ndim; i += blockDim.x) {
      const int point = i / problem.ndim, d = i % problem.ndim;
      const int column = d < plan.tables.low_axes ? d : kLow + d - plan.tables.low_axes;
      A total = 0;
      for (int w = 0; w < warps; ++w) total += slopes[(point * kSlopes + column) * warps + w];
      const int64_t points = problem.grids * problem.points_per_grid;
      gradients.coords[(share.tile * points + first) * problem.ndim + i] =
          batch.place[point] ? total : static_cast<A>(NAN);
    }
  }

  if (gradients.values && own) {
    const int64_t entries = problem.grids * problem.entries;
    A* const to = gradients.values +
                  (share.chunk * entries + share.grid * problem.entries) * problem.channels +
                  share.channel_begin + c;
    for (int entry = 0; entry < problem.entries; ++entry)
      store<V>(to + entry * problem.channels, load<V>(sums + entry * plan.tile_channels + c));
  }
}

template <class T, int kSlopes>
Plan plan_backward_on_chip(const Problem& problem, const Device& device, int vector, int columns,
                           bool want_values, bool want_coords) {
  using A = accumulator<T>;
  using C = Corner<int32_t, A, kSlopes>;
  constexpr int64_t kMostPoints = 32;  // located together: the rest of the memory is for channels
  Plan plan{};
  const Tables tables = tables_of(problem.ndim, problem.mode);
  const int64_t room = shared_of_a_block(device);
  const int most_warps = kThreads / 32;
  const int64_t slopes = want_coords ? columns * most_warps * sizeof(A) : 0;  // of a point
  const int64_t point = Batch<C>::bytes(tables, 1) + slopes;
  const int batch = static_cast<int>(std::clamp<int64_t>(room / 4 / point, 1, kMostPoints));
  constexpr int kParts = 4;  // of the shared memory, each of which is rounded up
  const int64_t beside = point * batch + kParts * kAlignment;
  const int64_t bytes = (want_values ? sizeof(A) : 0) + (want_coords ? sizeof(T) : 0);
  plan.tile_channels = std::min<int64_t>(channels_on_chip(problem, bytes, room - beside),
                                         static_cast<int64_t>(kThreads) * vector);
  if (plan.tile_channels == 0) return plan;
  plan.tables = tables;
  plan.batch = batch;
  plan.lanes = 1;
  plan.threads = static_cast<int>(ceil_div(plan.tile_channels, 32 * vector)) * 32;
  plan.shared = bytes * problem.entries * plan.tile_channels + beside;
  constexpr int64_t kMostThreads = 640;  // with 96 registers each
  // As many blocks as run at once, unless the sum of their partial results would cost more than
  // reading grad_output.
  const int64_t at_once = blocks_at_once(device, plan.shared, plan.threads, kMostThreads);
  const int64_t others = problem.grids * ceil_div(problem.channels, plan.tile_channels);
  return cut(problem, plan,
             std::min(at_once / others, problem.points_per_grid / (2 * problem.entries)));
}

}  // namespace crad
