// Several numbers that lie together.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/numbers.h"
#include "runtime.h"

namespace crad {

// What the hardware moves at once.
template <int bytes>
using Transfer = std::conditional_t<
    bytes == 16, uint4,
    std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;

template <class A, int V>
struct Pack {
  A lane[V];
};

// V numbers that lie together, moved 16 bytes at a time, or as many as they are.
template <int V, class T>
struct Move {
  static constexpr int kBytes = V * sizeof(T);
  static constexpr int kPiece = kBytes < 16 ? kBytes : 16;
  static constexpr int kPieces = kBytes / kPiece;
  using Piece = Transfer<kPiece>;
  T number[V];

  CRAD_DEVICE void read(const T* from) {
    Piece piece[kPieces];
    CRAD_UNROLL
    for (int i = 0; i < kPieces; ++i) piece[i] = reinterpret_cast<const Piece*>(from)[i];
    memcpy(number, piece, kBytes);
  }

  // Past the caches: for what is not read again soon, so that it does not displace what is.
  template <bool past_caches>
  CRAD_DEVICE void write(T* to) const {
    Piece piece[kPieces];
    memcpy(piece, number, kBytes);
    CRAD_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (past_caches)
        __stcs(reinterpret_cast<Piece*>(to) + i, piece[i]);
      else
        reinterpret_cast<Piece*>(to)[i] = piece[i];
    }
  }
};

template <int V, class T>
CRAD_DEVICE Pack<accumulator<T>, V> load(const T* from) {
  Move<V, T> move;
  move.read(from);
  Pack<accumulator<T>, V> pack;
  CRAD_UNROLL
  for (int i = 0; i < V; ++i) pack.lane[i] = widened(move.number[i]);
  return pack;
}

constexpr bool kPastCaches = true;  // see Move::write()
template <int V, bool past_caches = false, class T>
CRAD_DEVICE void store(T* to, const Pack<accumulator<T>, V>& pack) {
  Move<V, T> move;
  CRAD_UNROLL
  for (int i = 0; i < V; ++i) narrow(pack.lane[i], move.number[i]);
  move.template write<past_caches>(to);
}

// Adds to V sums that other threads add to at the same time.
template <int V, class A>
CRAD_DEVICE void add_atomically(A* to, const Pack<A, V>& pack) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kFloat = std::is_same_v<A, float>;
  if constexpr (kFloat && V % 4 == 0) {
    CRAD_UNROLL
    for (int i = 0; i < V; i += 4)
      atomicAdd(reinterpret_cast<float4*>(to + i),
                make_float4(pack.lane[i], pack.lane[i + 1], pack.lane[i + 2], pack.lane[i + 3]));
  } else if constexpr (kFloat && V % 2 == 0) {
    CRAD_UNROLL
    for (int i = 0; i < V; i += 2)
      atomicAdd(reinterpret_cast<float2*>(to + i), make_float2(pack.lane[i], pack.lane[i + 1]));
  } else
#endif
  {
    CRAD_UNROLL
    for (int i = 0; i < V; ++i) atomicAdd(to + i, pack.lane[i]);
  }
}

// a * b + c, rounded once: the build contracts nothing by itself, for the sake of csrc/core.
CRAD_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
CRAD_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <class A, int V>
CRAD_DEVICE void add_product(A weight, const Pack<A, V>& pack, Pack<A, V>& total) {
  CRAD_UNROLL
  for (int i = 0; i < V; ++i) total.lane[i] = multiply_add(weight, pack.lane[i], total.lane[i]);
}

template <class A, int V>
CRAD_DEVICE A dot(const Pack<A, V>& a, const Pack<A, V>& b) {
  A total = 0;
  CRAD_UNROLL
  for (int i = 0; i < V; ++i) total = multiply_add(a.lane[i], b.lane[i], total);
  return total;
}

template <class A, int V>
CRAD_DEVICE Pack<A, V> filled(A value) {
  Pack<A, V> pack;
  CRAD_UNROLL
  for (int i = 0; i < V; ++i) pack.lane[i] = value;
  return pack;
}

}  // namespace crad
