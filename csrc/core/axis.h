// One axis of a sample: coordinate -> index -> padding -> taps. Every mode is a product of these
// over the axes. The docstring of crad_kernels/reference.py is the specification.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "macros.h"

namespace crad {

// Both in the order of crad_kernels/_schema.py.
enum class Mode : int64_t { nearest = 0, linear = 1, cubic = 2 };
enum class Padding : int64_t { zeros = 0, border = 1, reflection = 2 };

namespace {

constexpr int kMaxTaps = 4;  // per axis

constexpr bool is_mode(int64_t value) {
  return value >= 0 && value <= static_cast<int64_t>(Mode::cubic);
}
constexpr bool is_padding(int64_t value) {
  return value >= 0 && value <= static_cast<int64_t>(Padding::reflection);
}

// Calls f with the mode, or the padding, as a compile-time constant.
template <class F>
CRAD_INLINE void with_mode(Mode mode, F f) {
  switch (mode) {
    case Mode::nearest:
      return f(std::integral_constant<Mode, Mode::nearest>{});
    case Mode::linear:
      return f(std::integral_constant<Mode, Mode::linear>{});
    case Mode::cubic:
      return f(std::integral_constant<Mode, Mode::cubic>{});
  }
}

template <class F>
CRAD_INLINE void with_padding(Padding padding, F f) {
  switch (padding) {
    case Padding::zeros:
      return f(std::integral_constant<Padding, Padding::zeros>{});
    case Padding::border:
      return f(std::integral_constant<Padding, Padding::border>{});
    case Padding::reflection:
      return f(std::integral_constant<Padding, Padding::reflection>{});
  }
}

// A fractional position, and how it moves with the coordinate.
template <class X>
struct Index {
  X at;
  X slope;
};

template <class X>
CRAD_INLINE Index<X> unpadded_index(X coord, int64_t size, bool align_corners) {
  // Past 2^24 entries, float rounds size - 1 in another way than size.
  const X length = static_cast<X>(size), last = static_cast<X>(size - 1);
  if (align_corners) return {(coord + 1) / 2 * last, last / 2};
  return {((coord + 1) * length - 1) / 2, length / 2};
}

// To [0, size - 1], NaN to 0; the slope is 0 where it clamps.
template <class X>
CRAD_INLINE Index<X> clamped(Index<X> index, int64_t size) {
  const X last = static_cast<X>(size - 1);
  const bool below = !(index.at > 0), above = !(index.at < last);
  return {below ? 0 : above ? last : index.at, below || above ? 0 : index.slope};
}

// Mirrored at -1/2 and size - 1/2, or at 0 and size - 1 with align_corners.
template <class X>
CRAD_INLINE Index<X> reflected(Index<X> index, int64_t size, bool align_corners) {
  const X low = align_corners ? X(0) : X(-0.5);
  const X span = static_cast<X>(align_corners ? size - 1 : size);
  if (!(std::fabs(index.at) < X(2147483648.0)) || span == 0) return {0, 0};
  X distance = index.at - low;
  if (distance < 0) {
    distance = -distance;
    index.slope = -index.slope;
  }
  const X extra = std::fmod(distance, span);
  const bool odd = std::fmod(std::floor(distance / span), X(2)) == 1;
  if (odd) return {span - extra + low, -index.slope};
  return {extra + low, index.slope};
}

template <class X>
CRAD_INLINE Index<X> padded_directly(Index<X> index, int64_t size, Padding padding,
                                     bool align_corners) {
  switch (padding) {
    case Padding::zeros:
      break;
    case Padding::border:
      return clamped(index, size);
    case Padding::reflection:
      return clamped(reflected(index, size, align_corners), size);
  }
  return index;
}

// An index that reads what `index` reads, near enough to the grid for its taps to be padded one by
// one; the slope is 0 where all of them read one entry.
template <class X>
CRAD_INLINE Index<X> kept_near(Index<X> index, int64_t size, Padding padding) {
  const X low = -2, high = static_cast<X>(size);
  switch (padding) {
    case Padding::zeros:
      break;
    case Padding::border:
      if (index.at != index.at) return {0, 0};
      if (index.at < low) return {low, 0};
      if (index.at > high) return {high, 0};
      break;
    case Padding::reflection:
      if (!(std::fabs(index.at) < X(2147483648.0))) return {0, 0};
      break;
  }
  return index;
}

// The index that the taps are taken around. As in torch, cubic pads its taps, the others the index.
template <class X>
CRAD_INLINE Index<X> padded(Index<X> index, int64_t size, Mode mode, Padding padding,
                            bool align_corners) {
  switch (mode) {
    case Mode::nearest:
    case Mode::linear:
      break;
    case Mode::cubic:
      return kept_near(index, size, padding);
  }
  return padded_directly(index, size, padding, align_corners);
}

CRAD_INLINE constexpr int tap_count(Mode mode) {
  switch (mode) {
    case Mode::nearest:
      return 1;
    case Mode::linear:
      return 2;
    case Mode::cubic:
      break;
  }
  return 4;
}

// The position that `t`, the argument of the weights, is the distance of the index from.
template <class X>
CRAD_INLINE X base_of(X index, Mode mode) {
  switch (mode) {
    case Mode::nearest:
      return std::nearbyint(index);
    case Mode::linear:
    case Mode::cubic:
      break;
  }
  return std::floor(index);
}

// The position of the entry that a tap reads: it may lie outside the grid.
template <class X>
CRAD_INLINE X tap_position(X base, int tap, int64_t size, Mode mode, Padding padding,
                           bool align_corners) {
  switch (mode) {
    case Mode::nearest:
    case Mode::linear:
      break;
    case Mode::cubic:
      return padded_directly(Index<X>{base + static_cast<X>(tap - 1), 0}, size, padding,
                             align_corners)
          .at;
  }
  return base + static_cast<X>(tap);
}

// The entry at a position. Where there is none, something outside the grid, by no more than the
// number of taps. An axis whose size is an int32_t has at most kExactSize entries.
template <class X, class Integer>
CRAD_INLINE Integer entry_at(X position, Integer size, int taps) {
  const X before = static_cast<X>(-taps), behind = static_cast<X>(size);
  if constexpr (sizeof(Integer) <= 4) {
    const X above = position > before ? position : before;  // and NaN
    return static_cast<Integer>(above < behind ? above : behind);
  }
  // Conditions are joined by & and not &&: a branch would keep loops from being vectorised.
  const bool near = (position >= before) & (position <= behind);
  const X kept = near ? position : before;
  const Integer entry = static_cast<Integer>(kept);
  // Past kExactSize, float may round the last position up, to where there is no entry.
  const X last = static_cast<X>(size - 1);
  const bool rounded_up = (static_cast<Integer>(last) >= size) & (kept <= last) & (entry >= size);
  return rounded_up ? size - 1 : entry;
}

constexpr int64_t kExactSize = 1 << 24;  // up to here float tells all integers apart

template <class Integer>
CRAD_INLINE constexpr bool is_entry(Integer entry, Integer size) {
  return (entry >= 0) & (entry < size);
}

// Whether the index is a place: with zeros padding, infinities and NaN are none.
template <class X>
CRAD_INLINE bool is_place(Index<X> unpadded, Padding padding) {
  return padding != Padding::zeros || unpadded.at - unpadded.at == 0;
}

// Whether the taps of a point read entries that follow each other, or lie outside the grid.
CRAD_INLINE constexpr bool taps_follow_each_other(Mode mode, Padding padding) {
  switch (mode) {
    case Mode::nearest:
    case Mode::linear:
      break;
    case Mode::cubic:
      return padding == Padding::zeros;
  }
  return true;
}

// Keys' cubic convolution with a = -3/4 at a distance of 0 to 1 (inner) or 1 to 2 entries, or its
// derivative with respect to the distance (Keys, IEEE TASSP 1981).
template <class X>
CRAD_INLINE X cubic_convolution(int order, bool inner, X x) {
  constexpr X a = X(-0.75);
  switch (order) {
    case 0:
      return inner ? ((a + 2) * x - (a + 3)) * x * x + 1
                   : ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    case 1:
      return inner ? (3 * (a + 2) * x - 2 * (a + 3)) * x : (3 * a * x - 10 * a) * x + 8 * a;
    case 2:
      return inner ? 6 * (a + 2) * x - 2 * (a + 3) : 6 * a * x - 10 * a;
    case 3:
      return inner ? 6 * (a + 2) : 6 * a;
    default:
      return 0;
  }
}

// The weight of a tap, or its derivative of some order with respect to the coordinate.
template <class X>
CRAD_INLINE X tap_weight(Mode mode, int order, int tap, X t, X slope) {
  switch (mode) {
    case Mode::nearest:
      return X(order == 0);
    case Mode::linear:
      if (order == 0) return tap == 0 ? 1 - t : t;
      if (order == 1) return tap == 0 ? -slope : slope;
      return 0;
    case Mode::cubic:
      break;
  }
  const X distance = tap < 2 ? t + static_cast<X>(1 - tap) : static_cast<X>(tap - 1) - t;
  X weight = cubic_convolution(order, tap == 1 || tap == 2, distance);
  for (int i = 0; i < order && i < 4; ++i) weight *= tap < 2 ? slope : -slope;
  return weight;
}

}  // namespace
}  // namespace crad
