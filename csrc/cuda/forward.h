// The sample. Threads that are neighbours share a point, each with a vector of its channels.
#pragma once

#include "corners.h"
#include "shared_memory.h"

namespace crad {

// Sum over the corners of weight * rows[entry * pitch], V channels of it.
template <int V, class T, class C>
CRAD_DEVICE Pack<accumulator<T>, V> blend(const Batch<C>& batch, int point, const T* rows,
                                          int64_t pitch) {
  using A = accumulator<T>;
  using Corners = Gathered<V, C, T>;
  auto total = filled<A, V>(0);
  for (int h = 0; h < batch.tables.high; ++h) {
    const C high = batch.high_corner(h, point);
    for (int first = 0; first < batch.tables.low; first += Corners::kCorners) {
      const Corners some(batch, point, first, batch.tables.low, high, rows, pitch, true);
      CRAD_UNROLL
      for (int i = 0; i < Corners::kCorners; ++i)
        add_product(some.corner[i].weight * high.weight, some.value[i], total);
    }
  }
  return total;
}

// The block's points, from `rows`: the channels of its share, `pitch` apart from entry to entry, or
// where the strides of the values say.
template <int V, class X, bool kStrided, class C, class T>
CRAD_DEVICE void sample_points(const Problem& problem, const Plan& plan, const Share& share,
                               Batch<C>& batch, const T* rows, int64_t pitch, T* output) {
  using A = accumulator<T>;
  const Group group(plan);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = points_from(share, first, batch.points);
    batch.template fill<X, kStrided>(problem, first, count);
    for (int point = group.index; point < count; point += group.count)
      for (int c = group.lane * V; c < channels_of(share); c += plan.lanes * V) {
        T* const to = output + (first + point) * problem.channels + share.channel_begin + c;
        store<V, kPastCaches>(to, batch.place[point] ? blend<V>(batch, point, rows + c, pitch)
                                                     : filled<A, V>(static_cast<A>(NAN)));
      }
  }
}

// From a grid that stays in memory.
template <class T, class X, int V>
CRAD_KERNEL(kBlocks)
sample_in_memory(const Problem problem, const Plan plan, T* output) {
  using C = Corner<int64_t, accumulator<T>, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  Batch<C> batch(plan.tables, plan.batch, memory);
  const T* const grid = static_cast<const T*>(problem.values) + share.grid * problem.grid_stride;
  sample_points<V, X, true>(problem, plan, share, batch, grid + share.channel_begin, 1, output);
}

// Copies the share's channels of every entry of its grid: of entry e to `to + e *
// plan.tile_channels`.
template <int V, class T>
CRAD_DEVICE void stage(const Problem& problem, const Plan& plan, const Share& share, T* to) {
  using W = Transfer<V * sizeof(T)>;
  const T* const grid = static_cast<const T*>(problem.values) + share.grid * problem.grid_stride +
                        share.channel_begin;
  const int vectors = channels_of(share) / V;
  const int entries = static_cast<int>(problem.entries);
  const int pitch = static_cast<int>(plan.tile_channels);
  // Loads on their way at a time. With more, fewer blocks would have room for their registers.
  constexpr int kFlying = 2;
  const int step_entry = blockDim.x / vectors, step_c = blockDim.x % vectors;
  int entry = threadIdx.x / vectors, c = threadIdx.x % vectors;
  while (entry < entries) {
    W moved[kFlying] = {};
    int at[kFlying];  // below 0: there is no more
    CRAD_UNROLL
    for (int i = 0; i < kFlying; ++i) {
      at[i] = entry < entries ? entry * pitch + c * V : -1;
      if (at[i] >= 0)
        moved[i] = __ldg(reinterpret_cast<const W*>(grid + entry * problem.channels + c * V));
      entry += step_entry;
      c += step_c;
      if (c >= vectors) {
        c -= vectors;
        ++entry;
      }
    }
    CRAD_UNROLL
    for (int i = 0; i < kFlying; ++i)
      if (at[i] >= 0) *reinterpret_cast<W*>(to + at[i]) = moved[i];
  }
}

// From a grid whose share is staged in shared memory.
template <class T, class X, int V>
CRAD_KERNEL(kBlocks)
sample_on_chip(const Problem problem, const Plan plan, T* output) {
  using C = Corner<int32_t, accumulator<T>, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  T* const staged = reinterpret_cast<T*>(memory);
  Batch<C> batch(plan.tables, plan.batch, memory + staged_bytes(problem, plan.tile_channels));
  stage<V>(problem, plan, share, staged);
  // The first batch waits for all threads before it is read, and so for the staged channels.
  sample_points<V, X, false>(problem, plan, share, batch, staged, plan.tile_channels, output);
}

}  // namespace crad
