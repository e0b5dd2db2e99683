// One axis of a sample: coordinate -> index -> padding -> taps, as crad_kernels/reference.py
// specifies them. Simplex (simplex.h) is linear along an axis.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "macros.h"

namespace crad {

// All in the order of crad_kernels/_schema.py.
enum class Mode : int64_t { nearest = 0, linear = 1, cubic = 2 };
enum class Padding : int64_t { zeros = 0, border = 1, reflection = 2, circular = 3 };
enum class Unit : int64_t { normalized = 0, index = 1 };  // of coordinates

namespace {

constexpr int64_t kSimplex = 3;  // its number after those of the modes
constexpr int kMaxTaps = 4;      // per axis

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
    case Padding::circular:
      return f(std::integral_constant<Padding, Padding::circular>{});
  }
}

// X is a number, or a vector with one for each of several points, of which a comparison has as many
// lanes, and ?: chooses lane by lane. This is what is not written alike for both.
template <class X>
struct Numbers {
  using Element = X;
  CRAD_INLINE X round_down(X x) { return std::floor(x); }
  CRAD_INLINE X round_to_even(X x) { return std::nearbyint(x); }
  CRAD_INLINE bool within(X x, double limit) { return std::fabs(x) < static_cast<X>(limit); }
};
template <class X>
using ElementOf = typename Numbers<X>::Element;

// A number, in every lane.
template <class X, class Number>
CRAD_INLINE X constant(Number number) {
  if constexpr (std::is_arithmetic_v<X>)
    return static_cast<X>(number);
  else
    return X{} + static_cast<ElementOf<X>>(number);
}

// A fractional position, and how it moves with the coordinate.
template <class X>
struct Index {
  X at;
  X slope;
};

// From coordinates along an axis to fractional positions: ((coord + shift) * scale - offset) *
// factor in any unit, so that no loop has to branch. (A step that a unit does not need changes no
// bit.)
template <class X>
struct Placement {
  X shift, scale, offset, factor;
};

template <class X>
CRAD_INLINE Placement<X> placement_of(int64_t size, bool align_corners, Unit unit) {
  // Past 2^24 entries, float(size) - 1 is not float(size - 1).
  const X length = static_cast<X>(size), last = static_cast<X>(size - 1);
  if (unit == Unit::index) return {X(0), X(1), X(0), X(1)};
  if (align_corners) return {X(1), X(0.5), X(0), last};
  return {X(1), length, X(1), X(0.5)};
}

template <class X>
CRAD_INLINE Index<X> unpadded_index(X coord, const Placement<ElementOf<X>>& placement) {
  const X at = ((coord + placement.shift) * placement.scale - placement.offset) * placement.factor;
  return {at, constant<X>(placement.scale * placement.factor)};
}

// To [0, size - 1], NaN to 0; the slope is 0 where it clamps.
template <class X>
CRAD_INLINE Index<X> clamped(Index<X> index, int64_t size) {
  const X first = constant<X>(0), last = constant<X>(size - 1);
  const X above = index.at > first ? index.at : first;
  const auto inside = (index.at > first) & (index.at < last);
  return {above < last ? above : last, inside ? index.slope : constant<X>(0)};
}

// Mirrored at -1/2 and size - 1/2, or at 0 and size - 1 with align_corners.
// For indices below 2^23, up to which a whole number of spans is exact.
template <class X>
CRAD_INLINE Index<X> reflected_near(Index<X> index, int64_t size, bool align_corners) {
  const X zero = constant<X>(0), low = constant<X>(align_corners ? 0 : -0.5);
  const int64_t length = align_corners ? size - 1 : size;
  if (length == 0) return {zero, zero};
  const X span = constant<X>(length), offset = index.at - low;
  const X distance = offset < zero ? -offset : offset;
  // The quotient may be rounded up to a whole number, by which there is one span too many.
  const X rounded = Numbers<X>::round_down(distance / span);
  const X rest = distance - rounded * span;
  const X extra = rest < zero ? rest + span : rest;
  const X spans = rest < zero ? rounded - constant<X>(1) : rounded;
  const auto odd = spans * constant<X>(0.5) != Numbers<X>::round_down(spans * constant<X>(0.5));
  return {(odd ? span - extra : extra) + low, odd == (offset < zero) ? index.slope : -index.slope};
}

// For all others.
template <class X>
CRAD_INLINE Index<X> reflected_far(Index<X> index, int64_t size, bool align_corners) {
  const X low = align_corners ? X(0) : X(-0.5);
  const X span = static_cast<X>(align_corners ? size - 1 : size);
  if (!Numbers<X>::within(index.at, 0x1p31) || span == 0) return {0, 0};
  const X distance = std::fabs(index.at - low), slope = index.at < 0 ? -index.slope : index.slope;
  const X extra = std::fmod(distance, span);
  const bool odd = std::fmod(std::floor(distance / span), X(2)) == 1;
  if (odd) return {span - extra + low, -slope};
  return {extra + low, slope};
}

// What is in bounds stays as it is, to the last bit.
template <class X>
CRAD_INLINE Index<X> reflected(Index<X> index, int64_t size, bool align_corners) {
  const X first = constant<X>(0), last = constant<X>(size - 1);
  const auto inside = (index.at > first) & (index.at < last);
  if constexpr (std::is_arithmetic_v<X>) {
    if (inside) return index;
    return Numbers<X>::within(index.at, 0x1p23) ? reflected_near(index, size, align_corners)
                                                : reflected_far(index, size, align_corners);
  } else if (Numbers<X>::within(index.at, 0x1p23)) {
    const Index<X> mirrored = reflected_near(index, size, align_corners);
    return {inside ? index.at : mirrored.at, inside ? index.slope : mirrored.slope};
  } else {
    return Numbers<X>::for_each_lane(
        index, [=](auto lane) { return reflected(lane, size, align_corners); });
  }
}

template <class X>
CRAD_INLINE Index<X> padded_directly(Index<X> index, int64_t size, Padding padding,
                                     bool align_corners) {
  switch (padding) {
    case Padding::zeros:
    case Padding::circular:  // of taps alone
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
  const X zero = constant<X>(0), low = constant<X>(-2), high = constant<X>(size),
          far = constant<X>(0x1p31);
  const auto near = (index.at > -far) & (index.at < far);
  X kept = index.at;
  switch (padding) {
    case Padding::zeros:
      return index;
    case Padding::border:
      kept = kept < low ? low : kept;
      kept = kept > high ? high : kept;
      kept = kept == kept ? kept : zero;
      break;
    case Padding::reflection:
    case Padding::circular:
      kept = near ? kept : zero;
      break;
  }
  return {kept, kept == index.at ? index.slope : zero};
}

// Whether padding moves every tap by itself, and not the index. As in torch, cubic pads its taps.
CRAD_INLINE constexpr bool pads_taps(Mode mode, Padding padding) {
  switch (padding) {
    case Padding::zeros:
    case Padding::border:
    case Padding::reflection:
      break;
    case Padding::circular:
      return true;
  }
  return mode == Mode::cubic;
}

// The index that the taps are taken around.
template <class X>
CRAD_INLINE Index<X> padded(Index<X> index, int64_t size, Mode mode, Padding padding,
                            bool align_corners) {
  return pads_taps(mode, padding) ? kept_near(index, size, padding)
                                  : padded_directly(index, size, padding, align_corners);
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

// The whole-number position that the taps are counted from: weights are functions of t = index -
// base.
template <class X>
CRAD_INLINE X base_of(X index, Mode mode) {
  switch (mode) {
    case Mode::nearest:
      return Numbers<X>::round_to_even(index);
    case Mode::linear:
    case Mode::cubic:
      break;
  }
  return Numbers<X>::round_down(index);
}

// A whole number below 2^23, moved to [0, size) by a whole number of periods.
template <class X>
CRAD_INLINE X wrapped_near(X whole, int64_t size) {
  const X period = constant<X>(size);
  // The quotient may be rounded up to a whole number, by which there is one period too many.
  const X rest = whole - Numbers<X>::round_down(whole / period) * period;
  return rest < constant<X>(0) ? rest + period : rest;
}

// The base of the same taps, in the grid where these repeat with it.
template <class X>
CRAD_INLINE X wrapped_base(X base, int64_t size, Padding padding) {
  switch (padding) {
    case Padding::zeros:
    case Padding::border:
    case Padding::reflection:
      return base;
    case Padding::circular:
      break;
  }
  const X first = constant<X>(0), last = constant<X>(size - 1);
  const auto inside = (base >= first) & (base <= last);
  if constexpr (std::is_arithmetic_v<X>) {
    if (inside) return base;
    if (Numbers<X>::within(base, 0x1p23)) return wrapped_near(base, size);
    const int64_t rest = static_cast<int64_t>(base) % size;
    return static_cast<X>(rest < 0 ? rest + size : rest);
  } else if (Numbers<X>::within(base, 0x1p23)) {
    const X wrapped = wrapped_near(base, size);
    return inside ? base : wrapped;
  } else {
    return Numbers<X>::for_each_lane(Index<X>{base, base},
                                     [=](auto lane) {
                                       return decltype(lane){wrapped_base(lane.at, size, padding),
                                                             lane.slope};
                                     })
        .at;
  }
}

// The position of the entry that a tap reads, counted from a wrapped base: it may lie outside the
// grid.
template <class X>
CRAD_INLINE X tap_position(X base, int tap, int64_t size, Mode mode, Padding padding,
                           bool align_corners) {
  const X position = base + constant<X>(mode == Mode::cubic ? tap - 1 : tap);
  if (!pads_taps(mode, padding)) return position;
  const X first = constant<X>(0), last = constant<X>(size - 1), period = constant<X>(size);
  switch (padding) {
    case Padding::zeros:
    case Padding::border:
    case Padding::reflection:
      break;
    case Padding::circular: {
      const X above = position < first ? position + period : position;
      return clamped(Index<X>{above > last ? above - period : above, first}, size).at;
    }
  }
  return padded_directly(Index<X>{position, first}, size, padding, align_corners).at;
}

// The entry at a position. Outside of [0, size), it is some number outside of [0, size), by no more
// than the number of taps. An axis whose size is an int32_t has at most kExactSize entries.
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

// Whether the taps of a point read entries that follow each other, or lie outside the grid: padding
// never moves a tap by itself then.
CRAD_INLINE constexpr bool taps_follow_each_other(Mode mode, Padding padding) {
  return padding == Padding::zeros || !pads_taps(mode, padding);
}

// Keys' cubic convolution with a = -3/4 at a distance of 0 to 1 (inner) or 1 to 2 entries, or its
// derivative with respect to the distance (Keys, IEEE TASSP 1981).
template <class X>
CRAD_INLINE X cubic_convolution(int order, bool inner, X x) {
  using E = ElementOf<X>;
  constexpr E a = E(-0.75);
  switch (order) {
    case 0:
      return inner ? ((a + 2) * x - (a + 3)) * x * x + E(1)
                   : ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    case 1:
      return inner ? (3 * (a + 2) * x - 2 * (a + 3)) * x : (3 * a * x - 10 * a) * x + 8 * a;
    case 2:
      return inner ? 6 * (a + 2) * x - 2 * (a + 3) : 6 * a * x - 10 * a;
    case 3:
      return constant<X>(inner ? 6 * (a + 2) : 6 * a);
    default:
      return constant<X>(0);
  }
}

// The weight of a tap, or its derivative of some order with respect to the coordinate.
template <class X>
CRAD_INLINE X tap_weight(Mode mode, int order, int tap, X t, X slope) {
  switch (mode) {
    case Mode::nearest:
      return constant<X>(order == 0);
    case Mode::linear:
      if (order == 0) return tap == 0 ? constant<X>(1) - t : t;
      if (order == 1) return tap == 0 ? -slope : slope;
      return constant<X>(0);
    case Mode::cubic:
      break;
  }
  const X distance = tap < 2 ? t + constant<X>(1 - tap) : constant<X>(tap - 1) - t;
  X weight = cubic_convolution(order, tap == 1 || tap == 2, distance);
  for (int i = 0; i < order && i < 4; ++i) weight *= tap < 2 ? slope : -slope;
  return weight;
}

}  // namespace
}  // namespace crad
