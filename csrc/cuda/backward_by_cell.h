// The gradients for a small grid and many points, by linear interpolation in 1 to 3 dimensions. The
// points between the same entries are those of a cell. A block sorts a batch of its points by cell,
// and each group of threads walks a part of them, with the corners of its cell and the sums of
// their gradients in registers: shared memory is read and added to only where the cell changes.
// Sorting is stable and a group adds to its own column, so the sums are the same in every run.
#pragma once

#include "forward.h"
#include "slopes.h"

namespace crad {

// The taps of a point along an axis: their weights, and the derivatives of these.
template <class A>
struct alignas(16) AxisTaps {
  A weight[2];
  A slope[2];
};

// Fills the taps of a point and returns its cell. A point that is no place has taps of NaN.
template <class X, class A>
CRAD_DEVICE uint32_t locate_in_cell(const Problem& problem, int64_t point, AxisTaps<A>* taps) {
  float normal[4];
  bool place = true, near = true;
  int cell = 0, cells_apart = 1;
  for (int d = 0; d < problem.ndim; ++d) {
    const int axis = problem.ndim - 1 - d, size = static_cast<int>(problem.size[axis]);
    const Component<X> at = component_of<X>(problem, point, d, normal);
    place &= at.place;
    const int lower = entry_at(at.base, size, 2);
    near &= lower >= -1 && lower < size;
    cell += (lower + 1) * cells_apart;
    cells_apart *= size + 1;
    const int order = order_along(problem, axis);
    AxisTaps<A> along;
    CRAD_UNROLL
    for (int tap = 0; tap < 2; ++tap) {
      along.weight[tap] = static_cast<A>(tap_weight(Mode::linear, order, tap, at.t, at.slope));
      along.slope[tap] = static_cast<A>(tap_weight(Mode::linear, order + 1, tap, at.t, at.slope));
    }
    taps[d] = along;
  }
  constexpr A nan = static_cast<A>(NAN);
  for (int d = 0; d < problem.ndim && !place; ++d) taps[d] = {{nan, nan}, {nan, nan}};
  return near ? cell : cells_apart;
}

// Where the corners of every cell lie in a column of entries, `pitch` apart; below 0 outside the
// grid, as those of the last cell do. Corner k has tap k >> d & 1 along component d.
template <int kNdim>
CRAD_DEVICE void list_corners(const Problem& problem, int cells, int pitch, int32_t* offsets) {
  for (int i = threadIdx.x; i < cells << kNdim; i += blockDim.x) {
    int rest = i >> kNdim, entry = 0, entries_apart = 1;
    bool inside = rest < cells - 1;
    CRAD_UNROLL
    for (int d = 0; d < kNdim; ++d) {
      const int size = static_cast<int>(problem.size[kNdim - 1 - d]);
      int along = rest % (size + 1) - 1 + (i >> d & 1);
      if (problem.padding[kNdim - 1 - d] == Padding::circular && along == size) along = 0;
      inside &= is_entry(along, size);
      entry += along * entries_apart;
      entries_apart *= size;
      rest /= size + 1;
    }
    offsets[i] = inside ? entry * pitch : -1;
  }
}

// Points as they are sorted: the cell, and the point's number in its batch.
constexpr int kHalfWord = 16;
CRAD_DEVICE uint32_t in_cell(uint32_t cell, uint32_t point) { return cell << kHalfWord | point; }
CRAD_DEVICE uint32_t cell_of(uint32_t word) { return word >> kHalfWord; }
CRAD_DEVICE uint32_t number_of(uint32_t word) { return word & ((1u << kHalfWord) - 1); }

// Sorts `count` points by their cells, stably, by all threads of the block. A warp ranks the points
// of a cell within its own stretch of them. `counts` are (warps, cells), all 0; what is in `words`
// is lost.
CRAD_DEVICE void sort_by_cell(uint32_t* words, int count, int cells, uint16_t* counts,
                              uint32_t* sorted) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int stretch = (count + blockDim.x - 1) / blockDim.x * kWarp;
  const int begin = warp * stretch + lane, end = begin + stretch;
  uint16_t* const own = counts + warp * cells;
  for (int i = begin; i < end; i += kWarp) {
    const uint32_t cell = i < count ? words[i] : cells;
    const unsigned peers = __match_any_sync(kWholeWarp, cell);
    const int earlier = __popc(peers & ((1u << lane) - 1));
    const int before = i < count ? own[cell] : 0;
    __syncwarp();
    if (i < count) words[i] = in_cell(cell, before + earlier);
    if (i < count && earlier == 0) own[cell] = static_cast<uint16_t>(before + __popc(peers));
    __syncwarp();
  }
  __syncthreads();
  // From numbers of points to where the first of them goes: cell by cell, warp by warp.
  if (warp == 0) {
    const int each = (cells + kWarp - 1) / kWarp, first = lane * each;
    const int last = first + each < cells ? first + each : cells;
    int total = 0, before = 0;
    for (int cell = first; cell < last; ++cell)
      for (int w = 0; w < warps; ++w) total += counts[w * cells + cell];
    CRAD_UNROLL
    for (int bit = 1; bit < kWarp; bit *= 2) {
      const int other = __shfl_xor_sync(kWholeWarp, total, bit);
      if (lane & bit) before += other;
      total += other;
    }
    for (int cell = first; cell < last; ++cell)
      for (int w = 0; w < warps; ++w) {
        const int number = counts[w * cells + cell];
        counts[w * cells + cell] = static_cast<uint16_t>(before);
        before += number;
      }
  }
  __syncthreads();
  for (int i = begin; i < end && i < count; i += kWarp) {
    const uint32_t cell = cell_of(words[i]);
    sorted[own[cell] + number_of(words[i])] = in_cell(cell, i);
  }
}

// The products of the weights along the axes.
template <int kNdim, class A>
CRAD_DEVICE void corner_weights(const AxisTaps<A> (&taps)[kNdim], A (&weight)[1 << kNdim]) {
  weight[0] = taps[0].weight[0];
  weight[1] = taps[0].weight[1];
  CRAD_UNROLL
  for (int d = 1; d < kNdim; ++d) CRAD_UNROLL
  for (int k = 0; k < 1 << d; ++k) {
    weight[k + (1 << d)] = weight[k] * taps[d].weight[1];
    weight[k] *= taps[d].weight[0];
  }
}

// The slopes of a point, given the product of its gradient with each corner's entry, which are
// lost. Axis by axis, the corners are halved: by weights, and by slopes along one of the axes.
template <int kNdim, class A>
CRAD_DEVICE void slopes_of_corners(const AxisTaps<A> (&taps)[kNdim], A (&product)[1 << kNdim],
                                   A* slope) {
  A along[kNdim][1 << (kNdim - 1)];
  const auto halved = [](const A(&by)[2], const A* pair) {
    return multiply_add(by[1], pair[1], by[0] * pair[0]);
  };
  CRAD_UNROLL
  for (int d = 0; d < kNdim; ++d) CRAD_UNROLL
  for (int k = 0; k < 1 << (kNdim - 1 - d); ++k) {
    CRAD_UNROLL
    for (int former = 0; former < d; ++former)
      along[former][k] = halved(taps[d].weight, along[former] + 2 * k);
    along[d][k] = halved(taps[d].slope, product + 2 * k);
    product[k] = halved(taps[d].weight, product + 2 * k);
  }
  CRAD_UNROLL
  for (int d = 0; d < kNdim; ++d) slope[d] = along[d][0];
}

template <class T, int V, int kNdim>
CRAD_KERNEL((V > 1 && kNdim > 2 ? 1 : kBlocksFor<accumulator<T>, V>))
backward_by_cell(const Problem problem, const Plan plan, const T* grad_output,
                 const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  constexpr int kCorners = 1 << kNdim;
  constexpr int kSlopes = slopes_by_cell(kNdim);
  constexpr int kTogether = kSums / kSlopes;  // points
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  const int channels = channels_of(share);
  const Group group(plan);
  // The thread's own channels; if there are not so many, others that it only reads.
  const bool own = group.lane * V < channels;
  const int c = own ? group.lane * V : 0;
  const int tile = static_cast<int>(plan.tile_channels);
  const int column = static_cast<int>(problem.entries) * tile;
  const int cells = static_cast<int>(cells_of(problem));
  const uint32_t row = static_cast<uint32_t>(problem.channels * sizeof(T));

  char* at = memory;
  const auto room_for = [&](int64_t bytes) {
    char* const here = at;
    at += rounded_up(bytes);
    return here;
  };
  // Of grad_values, (groups, entries, tile_channels).
  A* const all_sums =
      reinterpret_cast<A*>(room_for(gradients.values ? group.count * column * sizeof(A) : 0));
  T* const staged = reinterpret_cast<T*>(room_for(gradients.coords ? column * sizeof(T) : 0));
  // One point more than the batch has: `nobody`, of weights 0, which fills up the parts of groups.
  auto* const taps =
      reinterpret_cast<AxisTaps<A>*>(room_for((plan.batch + 1) * kNdim * sizeof(AxisTaps<A>)));
  A* const slopes =
      reinterpret_cast<A*>(room_for(gradients.coords ? plan.batch * kSlopes * sizeof(A) : 0));
  auto* const offsets = reinterpret_cast<int32_t*>(room_for(cells * kCorners * sizeof(int32_t)));
  auto* const sorted = reinterpret_cast<uint32_t*>(
      room_for((plan.batch + group.count * kTogether) * sizeof(uint32_t)));
  auto* const words = reinterpret_cast<uint32_t*>(room_for(plan.batch * sizeof(uint32_t)));
  auto* const counts = reinterpret_cast<uint16_t*>(at);  // (warps, cells)
  const uint32_t nobody = in_cell(cells - 1, plan.batch);

  if (gradients.coords) stage<V>(problem, plan, share, staged);
  list_corners<kNdim>(problem, cells, tile, offsets);
  if (threadIdx.x < kNdim) taps[plan.batch * kNdim + threadIdx.x] = {};
  A* const sums = all_sums + group.index * column + c;
  if (gradients.values && own)
    for (int entry = 0; entry < problem.entries; ++entry)
      store<V>(sums + entry * tile, filled<A, V>(0));

  // The cell that the group is in.
  uint32_t current = cells - 1;
  Pack<A, V> sum[kCorners], value[kCorners];
  CRAD_UNROLL
  for (int k = 0; k < kCorners; ++k) sum[k] = value[k] = filled<A, V>(0);
  const auto leave = [&] {
    if (!gradients.values || !own) return;
    Move<kCorners, int32_t> corner;
    corner.read(offsets + current * kCorners);
    Pack<A, V> total[kCorners];
    CRAD_UNROLL
    for (int k = 0; k < kCorners; ++k)
      total[k] = corner.number[k] >= 0 ? load<V>(sums + corner.number[k]) : filled<A, V>(0);
    CRAD_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      add_product(A(1), sum[k], total[k]);
      if (corner.number[k] >= 0) store<V>(sums + corner.number[k], total[k]);
    }
  };
  const auto enter = [&](uint32_t cell) {
    current = cell;
    Move<kCorners, int32_t> corner;
    corner.read(offsets + cell * kCorners);
    CRAD_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      sum[k] = filled<A, V>(0);
      value[k] = gradients.coords && corner.number[k] >= 0 ? load<V>(staged + c + corner.number[k])
                                                           : filled<A, V>(0);
    }
  };

  for (int64_t first = share.point_begin; first < share.point_end; first += plan.batch) {
    const int count = points_from(share, first, plan.batch);
    __syncthreads();  // the former batch may still be read
    for (int i = threadIdx.x; i < cells * (static_cast<int>(blockDim.x) / kWarp); i += blockDim.x)
      counts[i] = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      words[i] = locate_in_cell<float>(problem, first + i, taps + i * kNdim);
    __syncthreads();
    sort_by_cell(words, count, cells, counts, sorted);
    const int part =
        ((count + group.count - 1) / group.count + kTogether - 1) / kTogether * kTogether;
    for (int i = count + threadIdx.x; i < group.count * part; i += blockDim.x) sorted[i] = nobody;
    __syncthreads();

    const uint32_t* const walk = sorted + group.index * part;
    const char* const rows = reinterpret_cast<const char*>(grad_output + first * problem.channels +
                                                           share.channel_begin + c);
    // Gradients are on their way while those of the other points are worked on.
    const auto grad_of = [&](uint32_t word) {
      const uint32_t last = count - 1, point = number_of(word) < last ? number_of(word) : last;
      return load<V>(reinterpret_cast<const T*>(rows + static_cast<uint64_t>(point) * row));
    };
    Move<kTogether, uint32_t> now, next;
    now.read(walk);
    Pack<A, V> grad[kTogether];
    CRAD_UNROLL
    for (int j = 0; j < kTogether; ++j) grad[j] = grad_of(now.number[j]);
    // All threads of a warp take every turn: they exchange sums.
    for (int turn = 0; turn < part; turn += kTogether) {
      next.read(walk + (turn + kTogether < part ? turn + kTogether : turn));
      A slope[kSums];
      CRAD_UNROLL
      for (int i = 0; i < kSums; ++i) slope[i] = 0;
      CRAD_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        if (cell_of(now.number[j]) != current) {
          leave();
          enter(cell_of(now.number[j]));
        }
        AxisTaps<A> along[kNdim];
        CRAD_UNROLL
        for (int d = 0; d < kNdim; ++d)
          along[d] = whole(taps + number_of(now.number[j]) * kNdim + d);
        if (gradients.values) {
          A weight[kCorners];
          corner_weights(along, weight);
          CRAD_UNROLL
          for (int k = 0; k < kCorners; ++k) add_product(weight[k], grad[j], sum[k]);
        }
        if (gradients.coords) {
          A product[kCorners];
          CRAD_UNROLL
          for (int k = 0; k < kCorners; ++k) product[k] = dot(grad[j], value[k]);
          if (own) slopes_of_corners(along, product, slope + j * kSlopes);
        }
        grad[j] = grad_of(next.number[j]);
      }
      now = next;
      if (!gradients.coords) continue;
      sum_over_lanes(slope, plan.lanes);
      for_each_sum(slope, group.lane, plan.lanes, [&](int i, A sum) {
        const int point = number_of(walk[turn + i / kSlopes]);
        if (point < count) slopes[point * kSlopes + i % kSlopes] = sum;
      });
    }
    if (!gradients.coords) continue;
    __syncthreads();
    A* const to = gradients.of_point(problem, share.tile, first);
    for (int i = threadIdx.x; i < count * kNdim; i += blockDim.x)
      to[i] = slopes[i / kNdim * kSlopes + i % kNdim];
  }

  if (!gradients.values) return;
  leave();
  sum_groups(problem, channels, all_sums, group.count, column, tile,
             gradients.of_share(problem, share));
}

}  // namespace crad
