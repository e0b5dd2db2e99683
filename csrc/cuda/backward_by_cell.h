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
    const Component<X> at = component_of<X>(problem, size, point, d, normal);
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

// The shared memory of a block; memory_by_cell() says what is in it.
template <class T>
struct CellBlock {
  using A = accumulator<T>;
  A* sums;
  T* staged;
  AxisTaps<A>* taps;
  A* slopes;
  int32_t* corners;
  uint32_t *sorted, *words;
  uint16_t* counts;

  CRAD_DEVICE CellBlock(char* memory, const CellMemory& at)
      : sums(reinterpret_cast<A*>(memory + at.sums)),
        staged(reinterpret_cast<T*>(memory + at.staged)),
        taps(reinterpret_cast<AxisTaps<A>*>(memory + at.taps)),
        slopes(reinterpret_cast<A*>(memory + at.slopes)),
        corners(reinterpret_cast<int32_t*>(memory + at.corners)),
        sorted(reinterpret_cast<uint32_t*>(memory + at.sorted)),
        words(reinterpret_cast<uint32_t*>(memory + at.words)),
        counts(reinterpret_cast<uint16_t*>(memory + at.counts)) {}
};

// Locates a batch of points and sorts them by cell, by all threads of the block. `nobody` fills
// them up to `filled` points.
template <int kNdim, class T>
CRAD_DEVICE void sort_batch(const Problem& problem, const CellBlock<T>& block, int64_t first,
                            int count, int cells, uint32_t nobody, int filled) {
  __syncthreads();  // the former batch may still be read
  for (int i = threadIdx.x; i < cells * (static_cast<int>(blockDim.x) / kWarp); i += blockDim.x)
    block.counts[i] = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    block.words[i] = locate_in_cell<float>(problem, first + i, block.taps + i * kNdim);
  __syncthreads();
  sort_by_cell(block.words, count, cells, block.counts, block.sorted);
  for (int i = count + threadIdx.x; i < filled; i += blockDim.x) block.sorted[i] = nobody;
  __syncthreads();
}

// A thread's way through the points of its group, from cell to cell, with V channels of each.
template <class T, int V, int kNdim>
struct CellWalk {
  static constexpr int kCorners = 1 << kNdim;
  using A = accumulator<T>;
  const int32_t* corners;  // of all cells
  A* sums;                 // the thread's columns: of the gradient of the values,
  const T* staged;         // and of the values
  bool want_values, want_coords;
  bool own;       // whether the channels are the thread's own, or such as it only reads
  uint32_t cell;  // where the thread is
  Pack<A, V> sum[kCorners] = {}, value[kCorners] = {};

  CRAD_DEVICE void enter(uint32_t next) {
    cell = next;
    Move<kCorners, int32_t> corner;
    corner.read(corners + cell * kCorners);
    CRAD_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      sum[k] = filled<A, V>(0);
      value[k] = want_coords && corner.number[k] >= 0 ? load<V>(staged + corner.number[k])
                                                      : filled<A, V>(0);
    }
  }

  CRAD_DEVICE void leave() const {
    if (!want_values || !own) return;
    Move<kCorners, int32_t> corner;
    corner.read(corners + cell * kCorners);
    Pack<A, V> total[kCorners];
    CRAD_UNROLL
    for (int k = 0; k < kCorners; ++k)
      total[k] = corner.number[k] >= 0 ? load<V>(sums + corner.number[k]) : filled<A, V>(0);
    CRAD_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      add_product(A(1), sum[k], total[k]);
      if (corner.number[k] >= 0) store<V>(sums + corner.number[k], total[k]);
    }
  }

  // Adds the gradient of a point to the sums, and writes what the thread's channels give for its
  // slopes.
  CRAD_DEVICE void take(uint32_t word, const AxisTaps<A>* all_taps, const Pack<A, V>& grad,
                        A* slope) {
    if (cell_of(word) != cell) {
      leave();
      enter(cell_of(word));
    }
    AxisTaps<A> taps[kNdim];
    CRAD_UNROLL
    for (int d = 0; d < kNdim; ++d) taps[d] = whole(all_taps + number_of(word) * kNdim + d);
    if (want_values) {
      A weight[kCorners];
      corner_weights(taps, weight);
      CRAD_UNROLL
      for (int k = 0; k < kCorners; ++k) add_product(weight[k], grad, sum[k]);
    }
    if (want_coords) {
      A product[kCorners];
      CRAD_UNROLL
      for (int k = 0; k < kCorners; ++k) product[k] = dot(grad, value[k]);
      if (own) slopes_of_corners(taps, product, slope);
    }
  }
};

// What a thread reads of the gradient of the output: V channels of the points of a batch.
template <class T, int V>
struct GradRows {
  const char* first;
  uint32_t bytes, last;  // of a row; the last point

  // `nobody` reads the last point.
  CRAD_DEVICE Pack<accumulator<T>, V> operator[](uint32_t point) const {
    return load<V>(reinterpret_cast<const T*>(
        first + static_cast<uint64_t>(point < last ? point : last) * bytes));
  }
};

// Takes a group through its points, `words`, several at a time, and sums their slopes over its
// threads. All threads of a warp take every turn: they exchange sums.
template <class T, int V, int kNdim>
CRAD_DEVICE void walk_points(const Group& group, int lanes, const CellBlock<T>& block,
                             const uint32_t* words, int points, int count,
                             const GradRows<T, V>& grads, CellWalk<T, V, kNdim>& walk) {
  using A = accumulator<T>;
  constexpr int kSlopes = slopes_by_cell(kNdim);
  constexpr int kTogether = kSums / kSlopes;
  Move<kTogether, uint32_t> now, next;
  now.read(words);
  // Gradients are on their way while those of the other points are worked on.
  Pack<A, V> grad[kTogether];
  CRAD_UNROLL
  for (int j = 0; j < kTogether; ++j) grad[j] = grads[number_of(now.number[j])];
  for (int turn = 0; turn < points; turn += kTogether) {
    next.read(words + (turn + kTogether < points ? turn + kTogether : turn));
    A slope[kSums] = {};
    CRAD_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      walk.take(now.number[j], block.taps, grad[j], slope + j * kSlopes);
      grad[j] = grads[number_of(next.number[j])];
    }
    now = next;
    if (!walk.want_coords) continue;
    sum_over_lanes(slope, lanes);
    for_each_sum(slope, group.lane, lanes, [&](int i, A sum) {
      const int point = number_of(words[turn + i / kSlopes]);
      if (point < count) block.slopes[point * kSlopes + i % kSlopes] = sum;
    });
  }
}

template <class T, int V, int kNdim>
CRAD_KERNEL((V > 1 && kNdim > 2 ? 1 : kBlocksFor<accumulator<T>, V>))
backward_by_cell(const Problem problem, const Plan plan, const T* grad_output,
                 const Gradients<accumulator<T>> gradients) {
  using A = accumulator<T>;
  static_assert(sizeof(AxisTaps<A>) == kNumbersOfTaps * sizeof(A));
  constexpr int kSlopes = slopes_by_cell(kNdim);
  const bool want_values = gradients.values, want_coords = gradients.coords;
  CRAD_SHARED_MEMORY(memory);
  const CellBlock<T> block(memory, memory_by_cell(problem, plan, want_values, want_coords));
  const Share share = share_of(problem, plan, blockIdx.x);
  const int channels = channels_of(share);
  const Group group(plan);
  const bool own = group.lane * V < channels;
  const int c = own ? group.lane * V : 0;
  const int tile = static_cast<int>(plan.tile_channels);
  const int column = static_cast<int>(problem.entries) * tile;
  const int cells = static_cast<int>(cells_of(problem));

  if (want_coords) stage<V>(problem, plan, share, block.staged);
  list_corners<kNdim>(problem, cells, tile, block.corners);
  if (threadIdx.x < kNdim) block.taps[plan.batch * kNdim + threadIdx.x] = {};
  A* const sums = block.sums + group.index * column + c;
  if (want_values && own)
    for (int entry = 0; entry < problem.entries; ++entry)
      store<V>(sums + entry * tile, filled<A, V>(0));
  const uint32_t outside = cells - 1;  // a cell
  CellWalk<T, V, kNdim> walk{block.corners, sums, block.staged + c, want_values,
                             want_coords,   own,  outside};
  // A point of weights 0 behind those of the batch.
  const uint32_t nobody = in_cell(outside, plan.batch);

  for (int64_t first = share.point_begin; first < share.point_end; first += plan.batch) {
    const int count = points_from(share, first, plan.batch);
    const int of_a_group = (count + group.count - 1) / group.count;
    const int part = static_cast<int>(round_up(of_a_group, kSums / kSlopes));
    sort_batch<kNdim>(problem, block, first, count, cells, nobody, group.count * part);
    const T* const rows = grad_output + first * problem.channels + share.channel_begin + c;
    const GradRows<T, V> grads{reinterpret_cast<const char*>(rows),
                               static_cast<uint32_t>(problem.channels * sizeof(T)),
                               static_cast<uint32_t>(count - 1)};
    walk_points(group, plan.lanes, block, block.sorted + group.index * part, part, count, grads,
                walk);
    if (!want_coords) continue;
    __syncthreads();
    A* const to = gradients.of_point(problem, share.tile, first);
    for (int i = threadIdx.x; i < count * kNdim; i += blockDim.x)
      to[i] = block.slopes[i / kNdim * kSlopes + i % kNdim];
  }

  if (!want_values) return;
  walk.leave();
  sum_groups(problem, channels, block.sums, group.count, column, tile,
             gradients.of_share(problem, share));
}

}  // namespace crad
