// What the kernels of the backward pass share.
#pragma once

#include "vector.h"

namespace crad {

// Where the blocks of a backward pass put their results; null: not wanted. In backward_planes()
// values lie otherwise, and every lane has a part of the coordinates.
template <class A>
struct Gradients {
  A* values;  // (chunks, grids * entries, channels): summed over the chunks afterwards
  A* coords;  // (tiles, points, ndim): summed over the tiles afterwards

  // The block's share of the values of its chunk, from the first entry of its grid on.
  CRAD_DEVICE A* of_share(const Problem& problem, const Share& share) const {
    const int64_t grid = share.chunk * problem.grids + share.grid;
    return values + grid * problem.entries * problem.channels + share.channel_begin;
  }
  CRAD_DEVICE A* of_point(const Problem& problem, int64_t part, int64_t point) const {
    return coords + (part * points_of(problem) + point) * problem.ndim;
  }
};

// Doubles, 8 channels of a thread, and more than 4 slopes of a table take more registers than two
// blocks have.
template <class A, int V, class X = float, int kLow = 0>
constexpr int kBlocksFor = sizeof(A) > 4 || sizeof(X) > 4 || V > 4 || kLow > 4 ? 1 : kBlocks;

// The slopes of a point: the sum over the corners of their weights' derivatives times the product
// of the gradient of the output with their entry.
template <class A, int kLow, int kHigh>
struct Slopes {
  A low[kLow] = {};  // along the components of the low table, times the weight of the high one
  A along = 0;       // the low table's own sum, for the components of the high one

  template <class C>
  CRAD_DEVICE void add(const C& corner, A product) {
    along = multiply_add(corner.weight, product, along);
    CRAD_UNROLL
    for (int d = 0; d < kLow; ++d) low[d] = multiply_add(corner.slope[d], product, low[d]);
  }

  // Adds them, complete for one corner of the high table, to those of the point.
  template <class C>
  CRAD_DEVICE void add_to(A* slope, const C& high) const {
    CRAD_UNROLL
    for (int d = 0; d < kLow; ++d) slope[d] = multiply_add(high.weight, low[d], slope[d]);
    CRAD_UNROLL
    for (int d = 0; d < kHigh; ++d)
      slope[kLow + d] = multiply_add(high.slope[d], along, slope[kLow + d]);
  }
};

// Writes the slopes of a point: those of the low table's components, then those of the high one's.
template <int kLow, class A, int kSlopes>
CRAD_DEVICE void store_slopes(const Problem& problem, const Tables& tables,
                              const A (&slope)[kSlopes], bool place, A* to) {
  CRAD_UNROLL
  for (int d = 0; d < kSlopes; ++d) {
    const int component = d < kLow ? d : tables.low_axes + d - kLow;
    const bool used = d < kLow ? d < tables.low_axes : component < problem.ndim;
    if (used) to[component] = place ? slope[d] : static_cast<A>(NAN);
  }
}

// The sums of kSums numbers over the lanes that share a point. Of fewer than kSums lanes, every
// lane has all sums afterwards. Of others, v[0] of a lane is the sum of number
// `index_of_sum(lane)`: at each exchange, a lane gives away half of its numbers and adds what it is
// given to the others, which takes fewer exchanges.
template <class A>
CRAD_DEVICE void sum_over_lanes(A (&v)[kSums], int lanes) {
  const int lane = threadIdx.x % kWarp;
  if (lanes < kSums) {
    for (int bit = 1; bit < lanes; bit *= 2) CRAD_UNROLL
    for (int i = 0; i < kSums; ++i) v[i] += __shfl_xor_sync(kWholeWarp, v[i], bit);
    return;
  }
  CRAD_UNROLL
  for (int half = kSums / 2, bit = 1; half > 0; half /= 2, bit *= 2) {
    const bool upper = lane & bit;
    CRAD_UNROLL
    for (int i = 0; i < half; ++i) {
      const A given = upper ? v[i] : v[i + half];
      const A kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(kWholeWarp, given, bit);
    }
  }
  CRAD_UNROLL
  for (int bit = kSums; bit < kWarp; bit *= 2)
    if (bit < lanes) v[0] += __shfl_xor_sync(kWholeWarp, v[0], bit);
}

CRAD_DEVICE int index_of_sum(int lane) { return (lane & 1) * 4 + (lane & 2) + ((lane & 4) != 0); }

// Calls keep(i, sum) for the sums that sum_over_lanes() has left with this lane; each sum is kept
// by one lane of a warp.
template <class A, class F>
CRAD_DEVICE void for_each_sum(const A (&v)[kSums], int lane, int lanes, F keep) {
  if (lanes >= kSums) {
    if (lane % kWarp < kSums) keep(index_of_sum(lane), v[0]);
  } else if (lane == 0) {
    CRAD_UNROLL
    for (int i = 0; i < kSums; ++i) keep(i, v[i]);
  }
}

// Adds up, in order, what the groups of a block have summed in shared memory: group g has channel c
// of an entry at sums[g * group_pitch + entry * entry_pitch + c]. Called by all threads.
template <class A>
CRAD_DEVICE void sum_groups(const Problem& problem, int channels, const A* sums, int groups,
                            int64_t group_pitch, int64_t entry_pitch, A* to) {
  __syncthreads();
  const int results = static_cast<int>(problem.entries) * channels;
  for (int i = threadIdx.x; i < results; i += blockDim.x) {
    const int64_t entry = i / channels, channel = i % channels;
    A total = 0;
    for (int group = 0; group < groups; ++group)
      total += sums[group * group_pitch + entry * entry_pitch + channel];
    to[entry * problem.channels + channel] = total;
  }
}

}  // namespace crad
