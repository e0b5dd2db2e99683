// Points located together, one lane each: loops of a fixed length around csrc/core, which the
// compiler turns into vector code.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../core/jitter.h"
#include "geometry.h"
#include "kernels.h"
#include "words.h"

namespace crad {
namespace {

// Two vectors of AVX-512: what one waits for, the other does meanwhile.
constexpr int kLanes = 32;

// Of what a vector register reads or writes whole: across a border of this, that costs twice.
constexpr int kLine = 64;

template <class X>
struct alignas(kLine) Block {
  int64_t point[kLanes];
  X coord[kMaxDim][kLanes];  // jittered, along the axes
  X t[kMaxDim][kLanes];      // distance of the index from the base of its taps
  X slope[kMaxDim][kLanes];  // of the index with respect to the coordinate
  // Of a tap's entry; of the first tap alone where taps follow each other.
  int64_t offset[kMaxDim][kMaxTaps][kLanes];
  uint32_t inside[kLanes];  // a bit per tap and axis, see tap_bit: the tap lies inside the grid
  uint32_t finite[kLanes];  // whether the index is finite, or its padding makes it so
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

template <class T>
struct alignas(kLine) Lanes {
  T lane[kLanes];
  T& operator[](int i) { return lane[i]; }
  const T& operator[](int i) const { return lane[i]; }
};

CRAD_INLINE uint32_t tap_bit(int axis, int tap) { return uint32_t{1} << (axis * kMaxTaps + tap); }

// A corner that lies inside the grid. (Together, since GCC would read several offsets at once where
// they lie side by side, just after they were written one by one, which stalls the processor.)
template <class A>
struct Inside {
  int64_t offset;
  A weight;
  int corner;
};

// The corners of the points of a block: the product of the taps over the axes. The first axis is
// the fastest to vary in the order of the corners.
template <class A>
struct Corners {
  int count;
  bool follow;             // the taps of an axis follow each other
  uint32_t all = 0;        // taps
  Buffer<uint32_t> needs;  // the taps that must lie inside the grid
  Buffer<int64_t> step;    // from the entry of the first corner to this one's, if they follow
  Buffer<Lanes<int64_t>> offset;  // of the corner's entry; of the first corner's alone, if so
  Buffer<Lanes<A>> weight;

  template <class X>
  explicit Corners(const Geometry<X>& geometry)
      : count(count_of(geometry)),
        follow(taps_follow_each_other(geometry.mode, geometry.padding)),
        needs(count),
        step(count),
        offset(follow ? 1 : count),
        weight(count) {
    needs[0] = 0;
    step[0] = 0;
    for_each_product(geometry, [&](int axis, int tap, int from, int to) {
      needs[to] = needs[from] | tap_bit(axis, tap);
      all |= needs[to];
      step[to] = step[from] + tap * geometry.stride[axis];
    });
  }

  Inside<A> corner(int k, int lane) const {
    return {follow ? offset[0][lane] + step[k] : offset[k][lane], weight[k][lane], k};
  }

  template <class X>
  bool all_inside(const Block<X>& block, int lane) const {
    return (all & ~block.inside[lane]) == 0;
  }

  template <class X>
  static int count_of(const Geometry<X>& geometry) {
    int count = 1;
    for (int axis = 0; axis < geometry.ndim; ++axis) count *= tap_count(geometry.mode);
    return count;
  }

  // Calls f(axis, tap, from, to) so that the corners of the axes before `axis` become those of one
  // axis more: corner `to` is corner `from` with a tap of that axis. `to` may be `from`.
  template <class X, class F>
  static void for_each_product(const Geometry<X>& geometry, F f) {
    const int taps = tap_count(geometry.mode);
    for (int axis = 0, before = 1; axis < geometry.ndim; ++axis, before *= taps)
      for (int tap = taps - 1; tap >= 0; --tap)
        for (int k = 0; k < before; ++k) f(axis, tap, k, tap * before + k);
  }
};

// Words `first` and `first` + 1 of the points' jitter.
inline void jitter_words(uint64_t seed, const int64_t (&point)[kLanes], uint32_t block, int first,
                         uint32_t (&a)[kLanes], uint32_t (&b)[kLanes]) {
#if CRAD_VECTOR_BYTES > 16
  for (int i = 0; i < kLanes; i += WordVector::width) {
    const WordVector low = load_words(point + i);
    const WordsOf<WordVector> words =
        philox<WordVector>({{low, high_half(low), repeated(block), repeated(0)}}, seed);
    store_words(a + i, words.word[first]);
    store_words(b + i, words.word[first + 1]);
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    const Words words = jitter_words(seed, point[i], block);
    a[i] = words.word[first];
    b[i] = words.word[first + 1];
  }
#endif
}

template <class X>
inline void add_jitter(const Geometry<X>& geometry, Block<X>& block) {
  for (int d = 0; d < geometry.ndim; d += 2) {
    alignas(kLine) uint32_t a[kLanes], b[kLanes];
    alignas(kLine) float even[kLanes], odd[kLanes];
    if (d % 4 == 0)
      jitter_words(geometry.seed, block.point, d / 4, 0, a, b);
    else
      jitter_words(geometry.seed, block.point, d / 4, 2, a, b);
    for (int i = 0; i < kLanes; ++i) normal_pair(a[i], b[i], even[i], odd[i]);
    const int axis = geometry.ndim - 1 - d;
    for (int i = 0; i < kLanes; ++i)
      block.coord[axis][i] += geometry.jitter_std[axis] * static_cast<X>(even[i]);
    if (axis == 0) break;
    for (int i = 0; i < kLanes; ++i)
      block.coord[axis - 1][i] += geometry.jitter_std[axis - 1] * static_cast<X>(odd[i]);
  }
}

template <class Integer, Mode mode, Padding padding, class X>
inline void locate_along(const Geometry<X>& geometry, int axis, Block<X>& block) {
  const Integer size = static_cast<Integer>(geometry.size[axis]);
  const Integer stride = static_cast<Integer>(geometry.stride[axis]);
  const bool align_corners = geometry.align_corners;
  X base[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const Index<X> raw = unpadded_index(block.coord[axis][i], size, align_corners);
    const Index<X> index = padded(raw, size, mode, padding, align_corners);
    base[i] = base_of(index.at, mode);
    block.t[axis][i] = index.at - base[i];
    block.slope[axis][i] = index.slope;
    block.finite[i] &= is_place(raw, padding) ? 1u : 0u;
  }
  // Taps that follow each other are located together, others one by one.
  constexpr int taps = tap_count(mode);
  constexpr int together = taps_follow_each_other(mode, padding) ? taps : 1;
  for (int tap = 0; tap < taps; tap += together) {
    Integer offset[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const X at = tap_position(base[i], tap, size, mode, padding, align_corners);
      const Integer entry = entry_at(at, size, taps);
      uint32_t bits = 0;
      for (int next = 0; next < together; ++next)
        bits |= is_entry<Integer>(entry + next, size) * tap_bit(axis, tap + next);
      block.inside[i] |= bits;
      offset[i] = entry * stride;
    }
    for (int i = 0; i < kLanes; ++i) block.offset[axis][tap][i] = offset[i];
  }
}

// Locates along an axis, with mode and padding as compile-time constants.
template <class X>
inline void locate_along(const Geometry<X>& geometry, int axis, Block<X>& block) {
  with_mode(geometry.mode, [&](auto mode) {
    with_padding(geometry.padding, [&](auto padding) {
      constexpr Mode kMode = decltype(mode)::value;
      constexpr Padding kPadding = decltype(padding)::value;
      if (geometry.small)
        locate_along<int32_t, kMode, kPadding>(geometry, axis, block);
      else
        locate_along<int64_t, kMode, kPadding>(geometry, axis, block);
    });
  });
}

// Where the rows of points begin, in elements.
__attribute__((noinline)) void offsets_of(const RowStrides& rows, const int64_t (&point)[kLanes],
                                          int64_t (&offset)[kLanes]) {
  if (rows.axes == 1) {
    for (int i = 0; i < kLanes; ++i) offset[i] = point[i] * rows.stride[0];
    return;
  }
  const int last = rows.axes - 1;
  int64_t left = 0;  // points after the one before, in its line along the last axis
  for (int i = 0; i < kLanes; ++i) {
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
inline void take_apart(const X* coords, int ndim, X (&coord)[kMaxDim][kLanes]) {
  const auto take = [&](auto ndim) {
    for (int i = 0; i < kLanes; ++i)
      for (int axis = 0; axis < ndim; ++axis) coord[axis][i] = coords[i * ndim + ndim - 1 - axis];
  };
  switch (ndim) {  // as a constant, for the compiler to make vector code
    case 1:
      return take(std::integral_constant<int, 1>());
    case 2:
      return take(std::integral_constant<int, 2>());
    case 3:
      return take(std::integral_constant<int, 3>());
    case 4:
      return take(std::integral_constant<int, 4>());
    default:
      take(ndim);
  }
}

// The coordinates of the points of a block where they are not contiguous.
template <class X>
__attribute__((noinline)) void fetch_strided(const Geometry<X>& geometry, const X* coords,
                                             Block<X>& block) {
  int64_t offset[kLanes];
  offsets_of(*geometry.coords_strides, block.point, offset);
  const int64_t step = geometry.coords_strides->step;
  for (int axis = 0; axis < geometry.ndim; ++axis)
    for (int i = 0; i < kLanes; ++i)
      block.coord[axis][i] = coords[offset[i] + (geometry.ndim - 1 - axis) * step];
}

// Fetches the coordinates of the points from number `first` of the order on (null: of their own),
// of which `remaining` are left, and returns how many of the lanes are points; the others repeat
// the last one. `coords` holds those of all points.
template <class X>
inline int fetch(const Geometry<X>& geometry, const X* coords, const int64_t* order, int64_t first,
                 int64_t remaining, Block<X>& block) {
  const int points = remaining < kLanes ? static_cast<int>(remaining) : kLanes;
  for (int i = 0; i < kLanes; ++i) {
    const int64_t number = first + (i < points ? i : points - 1);
    block.point[i] = order ? order[number] : number;
  }
  if (geometry.coords_strides) {
    fetch_strided(geometry, coords, block);
  } else if (!order && points == kLanes) {
    take_apart(coords + first * geometry.ndim, geometry.ndim, block.coord);
  } else {
    for (int axis = 0; axis < geometry.ndim; ++axis)
      for (int i = 0; i < kLanes; ++i)
        block.coord[axis][i] = coords[block.point[i] * geometry.ndim + geometry.ndim - 1 - axis];
  }
  if (geometry.jittered) add_jitter(geometry, block);
  for (int i = 0; i < kLanes; ++i) {
    block.inside[i] = 0;
    block.finite[i] = 1;
  }
  return points;
}

// Fetches and locates points.
template <class X>
inline int locate(const Geometry<X>& geometry, const X* coords, const int64_t* order, int64_t first,
                  int64_t remaining, Block<X>& block) {
  const int points = fetch(geometry, coords, order, first, remaining, block);
  for (int axis = 0; axis < geometry.ndim; ++axis) locate_along(geometry, axis, block);
  return points;
}

// Sets the offsets of the corners of all points of a block.
template <class X, class A>
inline void place(const Geometry<X>& geometry, const Block<X>& block, Corners<A>& corners) {
  if (corners.follow) {
    Lanes<int64_t> sum = {};  // apart, so that the compiler need not expect an overlap
    for (int axis = 0; axis < geometry.ndim; ++axis)
      for (int i = 0; i < kLanes; ++i) sum[i] += block.offset[axis][0][i];
    corners.offset[0] = sum;
    return;
  }
  corners.offset[0] = {};
  corners.for_each_product(geometry, [&](int axis, int tap, int from, int to) {
    Lanes<int64_t> sum;
    for (int i = 0; i < kLanes; ++i) sum[i] = corners.offset[from][i] + block.offset[axis][tap][i];
    corners.offset[to] = sum;
  });
}

// Sets their weights; along the axis `differentiated` (-1: none) differentiated once more.
template <class X, class A>
inline void weigh(const Geometry<X>& geometry, const Block<X>& block, int differentiated,
                  Corners<A>& corners) {
  Lanes<A> along[kMaxDim][kMaxTaps];
  with_mode(geometry.mode, [&](auto mode) {
    for (int axis = 0; axis < geometry.ndim; ++axis) {
      const auto set = [&](auto order) {
        for (int tap = 0; tap < tap_count(mode); ++tap)
          for (int i = 0; i < kLanes; ++i)
            along[axis][tap][i] = static_cast<A>(
                tap_weight(mode, order, tap, block.t[axis][i], block.slope[axis][i]));
      };
      // The orders of samples and gradients as constants, for the compiler to make vector code.
      switch (const int order = geometry.order[axis] + (axis == differentiated)) {
        case 0:
          set(std::integral_constant<int, 0>());
          break;
        case 1:
          set(std::integral_constant<int, 1>());
          break;
        default:
          set(order);
      }
    }
  });
  for (int i = 0; i < kLanes; ++i) corners.weight[0][i] = 1;
  corners.for_each_product(geometry, [&](int axis, int tap, int from, int to) {
    Lanes<A> product;
    for (int i = 0; i < kLanes; ++i) product[i] = corners.weight[from][i] * along[axis][tap][i];
    corners.weight[to] = product;
  });
}

// Makes ready the block of points from number `first` of a range on; returns how many there are.
template <class X, class A>
inline int prepare(const Geometry<X>& geometry, const X* coords, const Range& range, int64_t first,
                   Block<X>& block, Corners<A>& corners) {
  const int points = locate(geometry, coords, range.order, first, range.point_end - first, block);
  place(geometry, block, corners);
  weigh(geometry, block, -1, corners);
  return points;
}

// The gradients of the points of a block with respect to their coordinates: `dot` holds for every
// corner the product of the output's gradient with its entry, 0 for corners outside.
template <class X, class A>
inline void differentiate(const Geometry<X>& geometry, const Block<X>& block, Corners<A>& corners,
                          const Buffer<Lanes<A>>& dot, int points, const Gradients& gradients) {
  X* const grad_coords = static_cast<X*>(gradients.grad_coords);
  for (int axis = 0; axis < geometry.ndim; ++axis) {
    weigh(geometry, block, axis, corners);
    Lanes<A> total = {};
    for (int k = 0; k < corners.count; ++k)
      for (int i = 0; i < kLanes; ++i) total[i] += corners.weight[k][i] * dot[k][i];
    for (int i = 0; i < points; ++i) {
      X& to = grad_coords[block.point[i] * geometry.ndim + geometry.ndim - 1 - axis];
      to = gradients.add_coords ? to + static_cast<X>(total[i]) : static_cast<X>(total[i]);
    }
  }
}

// Where the result of a point goes.
template <class T>
inline T* row_of(const Output& output, int64_t point) {
  return static_cast<T*>(output.data) + (point - output.first_point) * output.row -
         output.first_channel;
}

// Those of a point's corners that lie inside the grid.
template <class A>
struct Gathered {
  int count;
  Buffer<Inside<A>> corner;

  explicit Gathered(int most) : corner(most) {}

  // Those of a point whose corners are all inside.
  void take_all(const Corners<A>& corners, int lane) {
    count = corners.count;
    for (int k = 0; k < count; ++k) corner[k] = corners.corner(k, lane);
  }

  template <class X>
  void gather(const Corners<A>& corners, const Block<X>& block, int lane) {
    // Locals, so that the compiler need not expect a store to change them.
    const uint32_t outside = ~block.inside[lane];
    const uint32_t* const needs = corners.needs.get();
    const int64_t* const steps = corners.step.get();
    const int64_t first = corners.offset[0][lane];
    const bool follow = corners.follow;
    Inside<A>* const to = corner.get();
    int inside = 0;
    for (int k = 0, all = corners.count; k < all; ++k) {
      to[inside].offset = follow ? first + steps[k] : corners.offset[k][lane];
      to[inside].weight = corners.weight[k][lane];
      to[inside].corner = k;
      inside += (needs[k] & outside) == 0;
    }
    count = inside;
  }
};

}  // namespace
}  // namespace crad
