// The gradients for a grid whose share is staged in shared memory. A thread owns channels: it walks
// points in order and adds to its own column, so no addition has to be atomic, and the sums are the
// same in every run. Where channels are few, a block has several groups of such threads;
// each takes its own points.
#pragma once

#include "forward.h"
#include "slopes.h"

namespace crad {

// The corner of a high table without components.
template <class C>
CRAD_DEVICE C unit_corner() {
  C corner{};
  corner.weight = 1;
  return corner;
}

template <class T, int kLow, int kHigh>
using OwnCorner = Corner<int32_t, accumulator<T>, (kLow > kHigh ? kLow : kHigh)>;

// The V channels of a thread. kCorners: of a point, all in the low table; 0: not known to the
// compiler.
template <class T, int V, int kLow, int kHigh, int kCorners>
struct OwnChannels {
  using A = accumulator<T>;
  using C = OwnCorner<T, kLow, kHigh>;
  using Corners = Gathered<V, C, T>;
  A* sums;          // of the gradient of the values: of the first entry,
  const T* staged;  // and its values
  int pitch, tile;  // from entry to entry of either
  bool any;         // whether the tile has as many channels
  bool want_values, want_coords;
  bool distinct;  // no two corners of a point are of one entry

  // Adds weight * grad to the sums of the corners. Where these are distinct, all loads come before
  // the first store.
  CRAD_DEVICE void add(const Corners& some, A high_weight, const Pack<A, V>& grad) const {
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

  // Adds what the gradient of a point gives to the sums and to the point's slopes.
  CRAD_DEVICE void take(const Batch<C>& batch, int point, const Pack<A, V>& grad, A* slope) const {
    const int highs = kCorners > 0 ? 1 : batch.tables.high;
    const int lows = kCorners > 0 ? kCorners : batch.tables.low;
    for (int h = 0; h < highs; ++h) {
      const C high = kCorners > 0 ? unit_corner<C>() : batch.high_corner(h, point);
      Slopes<A, kLow, kHigh> slopes_of_high;
      for (int low = 0; low < lows; low += Corners::kCorners) {
        const Corners some(batch, point, low, lows, high, staged, tile, want_coords);
        if (want_values) add(some, high.weight, grad);
        if (want_coords) {
          CRAD_UNROLL
          for (int i = 0; i < Corners::kCorners; ++i)
            slopes_of_high.add(some.corner[i], dot(grad, some.value[i]));
        }
      }
      slopes_of_high.add_to(slope, high);
    }
  }
};

// Takes the points of a batch, several of each group at a time, and sums their slopes over the
// threads of a warp that share them: to (points, slopes, warps). `rows`: the thread's channels of
// the gradient of the output. All threads of a warp take every turn: they exchange sums.
template <class T, int V, int kLow, int kHigh, int kCorners>
CRAD_DEVICE void walk_points(const Group& group, int lanes,
                             const OwnChannels<T, V, kLow, kHigh, kCorners>& own,
                             const Batch<OwnCorner<T, kLow, kHigh>>& batch, int count,
                             const T* rows, int64_t channels, accumulator<T>* slopes) {
  using A = accumulator<T>;
  constexpr int kSlopes = kLow + kHigh;
  constexpr int kTogether = kSums / kSlopes;  // points
  const int warps = (lanes + kWarp - 1) / kWarp;
  const auto point_of = [&](int turn, int j) { return turn + j * group.count + group.index; };
  // The gradients of the points that come next, on their way while the others are worked on.
  Pack<A, V> next[kTogether];
  const auto fetch = [&](int turn) {
    CRAD_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const int point = point_of(turn, j);
      next[j] = own.any && point < count ? load<V>(rows + point * channels) : filled<A, V>(0);
    }
  };
  fetch(0);
  for (int turn = 0; turn < count; turn += group.count * kTogether) {
    Pack<A, V> grad[kTogether];
    CRAD_UNROLL
    for (int j = 0; j < kTogether; ++j) grad[j] = next[j];
    fetch(turn + group.count * kTogether);
    A slope[kSums] = {};
    CRAD_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const int point = point_of(turn, j);
      if (own.any && point < count && batch.place[point])
        own.take(batch, point, grad[j], slope + j * kSlopes);
    }
    if (!own.want_coords) continue;
    sum_over_lanes(slope, lanes);
    for_each_sum(slope, group.lane, lanes, [&](int i, A sum) {
      const int point = point_of(turn, i / kSlopes);
      if (i < kTogether * kSlopes && point < count)
        slopes[(point * kSlopes + i % kSlopes) * warps + group.lane / kWarp] = sum;
    });
  }
}

template <class T, class X, int V, int kLow, int kHigh, int kCorners>
CRAD_KERNEL((kBlocksFor<accumulator<T>, V, X, kLow>))
backward_on_chip(const Problem problem, const Plan plan, const T* grad_output,
                 const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  constexpr int kSlopes = kLow + kHigh;
  const bool want_values = gradients.values, want_coords = gradients.coords;
  CRAD_SHARED_MEMORY(memory);
  const OnChipMemory at =
      memory_on_chip(problem, plan, CornerSlopes{kLow, kHigh}, want_values, want_coords);
  A* const all_sums = reinterpret_cast<A*>(memory + at.sums);
  T* const staged = reinterpret_cast<T*>(memory + at.staged);
  A* const slopes = reinterpret_cast<A*>(memory + at.slopes);
  Batch<OwnCorner<T, kLow, kHigh>> batch(plan.tables, plan.batch, memory + at.located);
  const Share share = share_of(problem, plan, blockIdx.x);
  const int channels = channels_of(share);
  const Group group(plan);
  const int warps = (plan.lanes + kWarp - 1) / kWarp;  // that share a point
  const int c = group.lane * V;                        // the thread's first channel
  const int tile = static_cast<int>(plan.tile_channels), pitch = group.count * tile;
  A* const sums = all_sums + group.index * tile + c;
  const bool any = c < channels, distinct = taps_follow_each_other(problem);
  const OwnChannels<T, V, kLow, kHigh, kCorners> own{sums, staged + c,  pitch,       tile,
                                                     any,  want_values, want_coords, distinct};

  if (want_coords) stage<V>(problem, plan, share, staged);
  if (want_values && any)
    for (int entry = 0; entry < problem.entries; ++entry)
      store<V>(sums + entry * pitch, filled<A, V>(0));

  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = points_from(share, first, batch.points);
    batch.template fill<X>(problem, first, count);
    walk_points(group, plan.lanes, own, batch, count,
                grad_output + first * problem.channels + share.channel_begin + c, problem.channels,
                slopes);
    if (!want_coords) continue;
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

  if (want_values)
    sum_groups(problem, channels, all_sums, group.count, tile, pitch,
               gradients.of_share(problem, share));
}

}  // namespace crad
