// The coordinates of points to the taps of each axis. Points are located in batches, one lane each:
// loops of a fixed length around csrc/core, which the compiler turns into vector code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../core/jitter.h"
#include "kernels.h"
#include "simd.h"

namespace crad {
namespace {

// Points of a batch. Two vectors of AVX-512: what one waits for, the other does meanwhile.
constexpr int kBatch = 32;

template <class T>
struct alignas(kLine) PerPoint {
  T at[kBatch];
  T& operator[](int i) { return at[i]; }
  const T& operator[](int i) const { return at[i]; }
};

// Memory for a number of elements that is known at run time alone. (std::vector would be compiled
// here for one instruction set, and linked into what is called on any.)
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_(new T[count]) {}
  ~Buffer() { delete[] data_; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

// What is known of the points of a batch, whatever the type of their coordinates.
struct alignas(kLine) BatchOfPoints {
  int64_t point[kBatch];    // their numbers
  uint32_t inside[kBatch];  // a bit per tap and axis, see tap_bit: the tap is in bounds
  uint32_t finite[kBatch];  // whether the index is finite, or its padding makes it so
};

template <class X>
struct alignas(kLine) Batch : BatchOfPoints {
  X coord[kMaxDim][kBatch];  // jittered, in the order of the axes
  X t[kMaxDim][kBatch];      // distance of the index from the base of its taps
  X slope[kMaxDim][kBatch];  // of the index with respect to the coordinate
  // Of a tap's entry; of the first tap alone where taps follow each other along every axis.
  int64_t offset[kMaxDim][kMaxTaps][kBatch];
};

CRAD_INLINE uint32_t tap_bit(int axis, int tap) { return uint32_t{1} << (axis * kMaxTaps + tap); }

// ---- coordinates ----

// Where the rows of points begin, in elements.
__attribute__((noinline)) void offsets_of(const RowStrides& rows, const int64_t (&point)[kBatch],
                                          int64_t (&offset)[kBatch]) {
  if (rows.axes == 1) {
    for (int i = 0; i < kBatch; ++i) offset[i] = point[i] * rows.stride[0];
    return;
  }
  const int last = rows.axes - 1;
  int64_t left = 0;  // points after the one before, in its line along the last axis
  for (int i = 0; i < kBatch; ++i) {
    if (left > 0 && point[i] == point[i - 1] + 1) {
      offset[i] = offset[i - 1] + rows.stride[last];
      --left;
      continue;
    }
    offset[i] = 0;
    int64_t number = point[i];
    for (int axis = last; axis >= 0; --axis) {
      const int64_t line = axis > 0 ? number / rows.size[axis] : 0;
      const int64_t at = number - line * rows.size[axis];
      offset[i] += at * rows.stride[axis];
      if (axis == last) left = rows.size[axis] - 1 - at;
      number = line;
    }
  }
}

// The components of points that lie next to each other, along the axes.
template <class X>
CRAD_INLINE void take_apart(const X* coords, int ndim, X (&coord)[kMaxDim][kBatch]) {
  const auto take = [&](auto ndim) {
    for (int i = 0; i < kBatch; ++i)
      for (int axis = 0; axis < ndim; ++axis) coord[axis][i] = coords[i * ndim + ndim - 1 - axis];
  };
  if (!with_small(ndim, take)) take(ndim);
}

// The coordinates of the points of a batch where they are not contiguous.
template <class X>
__attribute__((noinline)) void fetch_strided(const Problem& problem, Batch<X>& batch) {
  int64_t offset[kBatch];
  offsets_of(*problem.coords_strides, batch.point, offset);
  const X* const coords = static_cast<const X*>(problem.coords);
  const int64_t step = problem.coords_strides->step;
  for (int axis = 0; axis < problem.ndim; ++axis)
    for (int i = 0; i < kBatch; ++i)
      batch.coord[axis][i] = coords[offset[i] + (problem.ndim - 1 - axis) * step];
}

// ---- jitter ----

#if CRAD_VECTOR_BYTES > 16
// Words of Philox for several points at once, in the lower halves of the lanes; what the upper
// halves hold does not matter. (Compilers do not find the instruction that multiplies 32 bits
// to 64.)
using Wide = Vector<uint64_t>;

CRAD_INLINE Wide product_of(Wide a, uint32_t b) {
  typedef long long Bits __attribute__((vector_size(CRAD_VECTOR_BYTES)));
  return {
      (Wide::Lanes)CRAD_INTRINSIC(mul_epu32)((Bits)a.lanes, (Bits)broadcast<uint64_t>(b).lanes)};
}
CRAD_INLINE Wide low_half(Wide product) { return product; }
CRAD_INLINE Wide high_half(Wide product) { return {product.lanes >> 32}; }
CRAD_INLINE Wide exclusive_or(Wide a, Wide b, uint32_t c) { return {a.lanes ^ b.lanes ^ c}; }

CRAD_INLINE void store_words(uint32_t* to, Wide words) {
  typedef uint32_t Words __attribute__((vector_size(CRAD_VECTOR_BYTES / 2)));
  const Words lower = __builtin_convertvector(words.lanes, Words);
  memcpy(to, &lower, sizeof(lower));
}
#endif

// Words `first` and `first` + 1 of the points' jitter.
inline void jitter_words(uint64_t seed, const int64_t (&point)[kBatch], uint32_t block, int first,
                         uint32_t (&a)[kBatch], uint32_t (&b)[kBatch]) {
#if CRAD_VECTOR_BYTES > 16
  for (int i = 0; i < kBatch; i += Wide::width) {
    Wide number;
    memcpy(&number, point + i, sizeof(number));
    const WordsOf<Wide> counter{{number, high_half(number), broadcast<uint64_t>(block), {}}};
    const WordsOf<Wide> words = philox(counter, low_half(seed), high_half(seed));
    store_words(a + i, words.word[first]);
    store_words(b + i, words.word[first + 1]);
  }
#else
  for (int i = 0; i < kBatch; ++i) {
    const Words words = jitter_words(seed, point[i], block);
    a[i] = words.word[first];
    b[i] = words.word[first + 1];
  }
#endif
}

template <class X>
inline void add_jitter(const Problem& problem, Batch<X>& batch) {
  const uint64_t seed = static_cast<uint64_t>(*problem.seed);
  const X* const jitter_std = static_cast<const X*>(problem.jitter_std);
  for (int d = 0; d < problem.ndim; d += 2) {
    alignas(kLine) uint32_t a[kBatch], b[kBatch];
    alignas(kLine) float even[kBatch], odd[kBatch];
    if (d % 4 == 0)
      jitter_words(seed, batch.point, d / 4, 0, a, b);
    else
      jitter_words(seed, batch.point, d / 4, 2, a, b);
    for (int i = 0; i < kBatch; ++i) normal_pair(a[i], b[i], even[i], odd[i]);
    const auto add = [&](int d, const float (&normal)[kBatch]) {
      const X std = jitter_std[d];
      X* const coord = batch.coord[problem.ndim - 1 - d];
      for (int i = 0; i < kBatch; ++i) coord[i] += std * static_cast<X>(normal[i]);
    };
    add(d, even);
    if (d + 1 < problem.ndim) add(d + 1, odd);
  }
}

// ---- taps ----

template <class Integer, Mode mode, Padding padding, class X>
inline void locate_along(const Problem& problem, int axis, Batch<X>& batch) {
  const Integer size = static_cast<Integer>(problem.size[axis]);
  const Integer stride = static_cast<Integer>(problem.stride[axis]);
  const bool align_corners = problem.align_corners[axis];
  const Placement<X> placement = placement_of<X>(size, align_corners, problem.unit);
  X base[kBatch];
  for (int i = 0; i < kBatch; ++i) {
    const Index<X> raw = unpadded_index(batch.coord[axis][i], placement);
    const Index<X> index = padded(raw, size, mode, padding, align_corners);
    const X whole = base_of(index.at, mode);
    base[i] = wrapped_base(whole, size, padding);
    batch.t[axis][i] = index.at - whole;
    batch.slope[axis][i] = index.slope;
    batch.finite[i] &= is_place(raw, padding) ? 1u : 0u;
  }
  // Taps that follow each other are located together, others one by one.
  constexpr int taps = tap_count(mode);
  constexpr int together = taps_follow_each_other(mode, padding) ? taps : 1;
  for (int tap = 0; tap < taps; tap += together) {
    Integer offset[kBatch];
    for (int i = 0; i < kBatch; ++i) {
      const X at = tap_position(base[i], tap, size, mode, padding, align_corners);
      const Integer entry = entry_at(at, size, taps);
      uint32_t bits = 0;
      for (int next = 0; next < together; ++next)
        bits |= is_entry<Integer>(entry + next, size) * tap_bit(axis, tap + next);
      batch.inside[i] |= bits;
      offset[i] = entry * stride;
    }
    for (int i = 0; i < kBatch; ++i) batch.offset[axis][tap][i] = offset[i];
    if (together == 1 || taps_follow_each_other(problem)) continue;
    // Along another axis, they do not.
    for (int next = 1; next < together; ++next)
      for (int i = 0; i < kBatch; ++i)
        batch.offset[axis][next][i] = batch.offset[axis][0][i] + next * int64_t{stride};
  }
}

// Locates along an axis, with mode and padding as compile-time constants, and in integers of 32
// bits where entries and their offsets fit; a tap may lie outside, by no more than the number of
// taps.
template <class X>
inline void locate_along(const Problem& problem, int axis, Batch<X>& batch) {
  const int64_t size = problem.size[axis];
  const bool small = size <= kExactSize &&
                     (size + kMaxTaps) * problem.stride[axis] < std::numeric_limits<int32_t>::max();
  with_mode(problem.mode, [&](auto mode) {
    with_padding(problem.padding[axis], [&](auto padding) {
      constexpr Mode kMode = decltype(mode)::value;
      constexpr Padding kPadding = decltype(padding)::value;
      if (small)
        locate_along<int32_t, kMode, kPadding>(problem, axis, batch);
      else
        locate_along<int64_t, kMode, kPadding>(problem, axis, batch);
    });
  });
}

// Fetches the coordinates of the batch of points from number `first` of a range on, and returns how
// many of the lanes are points; the others repeat the last one.
template <class X>
CRAD_INLINE int fetch(const Problem& problem, const Range& range, int64_t first, Batch<X>& batch) {
  const X* const coords = static_cast<const X*>(problem.coords);
  const int ndim = problem.ndim;
  const int points = static_cast<int>(std::min<int64_t>(range.point_end - first, kBatch));
  for (int i = 0; i < kBatch; ++i) {
    const int64_t number = first + (i < points ? i : points - 1);
    batch.point[i] = range.order ? range.order[number] : number;
  }
  if (problem.coords_strides) {
    fetch_strided(problem, batch);
  } else if (!range.order && points == kBatch) {
    take_apart(coords + first * ndim, ndim, batch.coord);
  } else {
    for (int axis = 0; axis < ndim; ++axis)
      for (int i = 0; i < kBatch; ++i)
        batch.coord[axis][i] = coords[batch.point[i] * ndim + ndim - 1 - axis];
  }
  if (problem.seed) add_jitter(problem, batch);
  for (int i = 0; i < kBatch; ++i) {
    batch.inside[i] = 0;
    batch.finite[i] = 1;
  }
  return points;
}

// The lowest entry along an axis that each point of a batch reads, in bounds; -1 where `seam` and
// the taps do not lie within a run of as many entries. The stride of the axis must be 1.
template <class X>
inline void lowest_entries(const Problem& problem, int axis, bool seam, Batch<X>& batch,
                           int64_t (&lowest)[kBatch]) {
  locate_along(problem, axis, batch);
  const bool follow = taps_follow_each_other(problem.mode, problem.padding[axis]);
  const int taps = follow ? 1 : tap_count(problem.mode);
  for (int i = 0; i < kBatch; ++i) {
    int64_t entry = batch.offset[axis][0][i], highest = entry;
    for (int tap = 1; tap < taps; ++tap) {
      entry = std::min(entry, batch.offset[axis][tap][i]);
      highest = std::max(highest, batch.offset[axis][tap][i]);
    }
    lowest[i] = std::max<int64_t>(0, std::min(entry, problem.size[axis] - 1));
    if (seam && highest - entry >= taps) lowest[i] = -1;
  }
}

// The part, band * second_number + second band, of the lowest entry that each point of a range
// reads.
template <class X>
void locate_parts(const Problem& problem, const Bands& bands, const Range& range, int32_t* part) {
  Problem entries = problem;  // whose offsets along an axis are numbers of entries
  std::fill_n(entries.stride, problem.ndim, 1);
  Batch<X> batch;
  for (int64_t p = range.point_begin; p < range.point_end; p += kBatch) {
    const int points = fetch(entries, range, p, batch);
    int64_t first[kBatch], second[kBatch] = {};
    lowest_entries(entries, bands.axis, bands.seam, batch, first);
    if (bands.second >= 0) lowest_entries(entries, bands.second, false, batch, second);
    for (int i = 0; i < points; ++i) {
      const int64_t band = first[i] < 0 ? bands.number - 1 : first[i] >> bands.shift;
      part[p + i] =
          static_cast<int32_t>(band * bands.second_number + (second[i] >> bands.second_shift));
    }
  }
}

}  // namespace
}  // namespace crad
