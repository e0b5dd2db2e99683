// One axis of a sample: coordinate -> index -> padding -> taps. Every mode is a product of these
// over the axes. The docstring of crad_kernels/backends/reference.py is the specification.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace crad {
namespace {

enum class Mode : int64_t { nearest = 0, linear = 1 };
enum class Padding : int64_t { zeros = 0, border = 1, reflection = 2 };

constexpr int kMaxTaps = 2;  // per axis

// A fractional position, and how it moves with the coordinate.
template <class X>
struct Index {
  X at;
  X slope;
};

template <class X>
CRAD_INLINE Index<X> unpadded_index(X coord, int64_t size, bool align_corners) {
  const X length = static_cast<X>(size);
  if (align_corners) return {(coord + 1) / 2 * (length - 1), (length - 1) / 2};
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
CRAD_INLINE Index<X> padded(Index<X> index, int64_t size, Padding padding, bool align_corners) {
  switch (padding) {
    case Padding::border:
      return clamped(index, size);
    case Padding::reflection:
      return clamped(reflected(index, size, align_corners), size);
    default:
      return index;
  }
}

CRAD_INLINE constexpr int tap_count(Mode mode) { return mode == Mode::nearest ? 1 : 2; }

// The position of the first tap; the others follow it.
template <class X>
CRAD_INLINE X first_tap(X index, Mode mode) {
  return mode == Mode::nearest ? std::nearbyint(index) : std::floor(index);
}

// The weight of a tap, or its derivative of some order with respect to the coordinate; `t` is the
// distance of the index from the first tap.
template <class X>
CRAD_INLINE X tap_weight(Mode mode, int order, int tap, X t, X slope) {
  if (mode == Mode::nearest) return X(order == 0);
  if (order == 0) return tap == 0 ? 1 - t : t;
  if (order == 1) return tap == 0 ? -slope : slope;
  return 0;
}

}  // namespace
}  // namespace crad
