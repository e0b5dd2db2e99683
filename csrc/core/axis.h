// One axis of a sample: coordinate -> index -> padding -> taps. Every mode is a product of these over
// the axes. The docstring of crad_kernels/backends/reference.py is the specification.
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

// The entries that a sample reads along an axis; a tap outside the grid is left out.
template <class X>
struct Taps {
  int count;
  int64_t entry[kMaxTaps];
  X weight[kMaxTaps];
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
  if (!(index.at > 0)) return {0, 0};
  if (!(index.at < last)) return {last, 0};
  return index;
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

// The taps of a finite index, with the derivative of the given order of their weights with respect
// to the coordinate.
template <class X>
CRAD_INLINE Taps<X> taps_at(Index<X> index, int64_t size, Mode mode, int order) {
  Taps<X> taps{};
  if (!(index.at > X(-2) && index.at < static_cast<X>(size) + 1)) return taps;
  auto add = [&](int64_t entry, X weight) {
    if (entry < 0 || entry >= size) return;
    taps.entry[taps.count] = entry;
    taps.weight[taps.count++] = weight;
  };
  if (mode == Mode::nearest) {
    add(static_cast<int64_t>(std::nearbyint(index.at)), X(order == 0));
    return taps;
  }
  const X low = std::floor(index.at);
  const X t = index.at - low;
  const int64_t entry = static_cast<int64_t>(low);
  const X slope = order == 1 ? index.slope : X(0);
  add(entry, order == 0 ? 1 - t : -slope);
  add(entry + 1, order == 0 ? t : slope);
  return taps;
}

}  // namespace
}  // namespace crad
