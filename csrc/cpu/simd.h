// The vector of the instruction set that this file is being compiled for, loaded from and stored to
// any type of values. CRAD_VECTOR_BYTES says how wide it is.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/problem.h"

// The intrinsics that take whole vectors.
#if CRAD_VECTOR_BYTES > 16
#include <immintrin.h>
#if CRAD_VECTOR_BYTES == 64
#define CRAD_INTRINSIC(name) _mm512_##name
#else
#define CRAD_INTRINSIC(name) _mm256_##name
#endif
#endif

namespace crad {
namespace {

template <class A>
struct Vector {
  static constexpr int width = CRAD_VECTOR_BYTES / sizeof(A);
  typedef A Lanes __attribute__((vector_size(CRAD_VECTOR_BYTES)));
  Lanes lanes;
};

// (Laid out here, where GCC knows the instruction set: at the end of the file, where it
// instantiates templates, it does not, and then moves such a vector in pieces.)
template struct Vector<float>;
template struct Vector<double>;
template struct Vector<uint64_t>;

typedef uint16_t HalfLanes __attribute__((vector_size(CRAD_VECTOR_BYTES / 2)));
typedef uint32_t WordLanes __attribute__((vector_size(CRAD_VECTOR_BYTES)));
typedef int32_t IntLanes __attribute__((vector_size(CRAD_VECTOR_BYTES)));

template <class A>
CRAD_INLINE Vector<A> broadcast(A value) {
  return {typename Vector<A>::Lanes{} + value};
}

// a * b + c, rounded once where the instruction set can.
template <class A>
CRAD_INLINE Vector<A> multiply_add(Vector<A> a, Vector<A> b, Vector<A> c) {
#if CRAD_VECTOR_BYTES > 16
  if constexpr (std::is_same_v<A, float>)
    return {CRAD_INTRINSIC(fmadd_ps)(a.lanes, b.lanes, c.lanes)};
  else
    return {CRAD_INTRINSIC(fmadd_pd)(a.lanes, b.lanes, c.lanes)};
#else
  return {a.lanes * b.lanes + c.lanes};
#endif
}

// And so of a number.
template <class A>
CRAD_INLINE std::enable_if_t<std::is_floating_point_v<A>, A> multiply_add(A a, A b, A c) {
#if CRAD_VECTOR_BYTES > 16
  if constexpr (std::is_same_v<A, float>)
    return __builtin_fmaf(a, b, c);
  else
    return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// The sum of the lanes, halving the vector until it has 16 bytes.
template <class A, int bytes = CRAD_VECTOR_BYTES>
CRAD_INLINE A sum_lanes(const void* lanes) {
  typedef A Half __attribute__((vector_size(bytes / 2)));
  Half low, high;
  memcpy(&low, lanes, sizeof(low));
  memcpy(&high, static_cast<const char*>(lanes) + sizeof(low), sizeof(high));
  low += high;
  if constexpr (sizeof(low) == sizeof(A))
    return low[0];
  else
    return sum_lanes<A, bytes / 2>(&low);
}

// The sums of the lanes of N vectors.
template <int N, class A>
CRAD_INLINE void sums(const Vector<A> (&vectors)[N], A* result) {
  for (int k = 0; k < N; ++k) result[k] = sum_lanes<A>(&vectors[k]);
}

#if CRAD_VECTOR_BYTES == 64
// Of four at once: each addition halves what is left of two of them.
template <int N>
CRAD_INLINE void sums(const Vector<float> (&vectors)[N], float* result) {
  const auto both = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const auto lanes = [&](int k) { return k < N ? vectors[k].lanes : _mm512_setzero_ps(); };
  for (int k = 0; k < N; k += 4) {
    const __m512 even = both(lanes(k), lanes(k + 1)), odd = both(lanes(k + 2), lanes(k + 3));
    const __m512 four =
        _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x44), _mm512_shuffle_ps(even, odd, 0xEE));
    const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
    const __m128 one = _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
    memcpy(result + k, &one, (N - k < 4 ? N - k : 4) * sizeof(float));
  }
}
#endif

// ---- whole vectors ----

template <class T>
constexpr bool is_half = sizeof(T) == 2;

template <class T>
CRAD_INLINE Vector<accumulator<T>> load(const T* from) {
  if constexpr (is_half<T>) {
    HalfLanes halves;
    memcpy(&halves, from, sizeof(halves));
#if CRAD_VECTOR_BYTES > 16
    // (GCC takes four instructions to widen what the processor widens in one.)
    typedef long long Bits __attribute__((vector_size(sizeof(halves))));
    const WordLanes words = (WordLanes)CRAD_INTRINSIC(cvtepu16_epi32)((Bits)halves);
#else
    const WordLanes words = __builtin_convertvector(halves, WordLanes);
#endif
    return {widened<Vector<float>::Lanes>(T{}, words)};
  } else {
    Vector<T> vector;
    memcpy(&vector, from, sizeof(vector));
    return vector;
  }
}

// The lanes as they are stored.
template <class T>
CRAD_INLINE auto stored(Vector<accumulator<T>> vector) {
  if constexpr (is_half<T>)
    return __builtin_convertvector(narrowed<WordLanes>(T{}, vector.lanes), HalfLanes);
  else
    return vector.lanes;
}

template <class T>
CRAD_INLINE void store(T* to, Vector<accumulator<T>> vector) {
  const auto lanes = stored<T>(vector);
  memcpy(to, &lanes, sizeof(lanes));
}

// ---- the first `count` lanes of a vector; the others are 0 ----

#if CRAD_VECTOR_BYTES == 32
CRAD_INLINE __m256i first_lanes(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}
#endif

template <class T>
CRAD_INLINE Vector<accumulator<T>> load_first(const T* from, int count) {
#if CRAD_VECTOR_BYTES == 64
  const uint32_t first = (1u << count) - 1;
  if constexpr (is_half<T>)
    return {widened<Vector<float>::Lanes>(
        T{}, (WordLanes)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, from)))};
  if constexpr (std::is_same_v<T, float>) return {_mm512_maskz_loadu_ps(first, from)};
#elif CRAD_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>) return {_mm256_maskload_ps(from, first_lanes(count))};
#endif
  T lanes[Vector<accumulator<T>>::width] = {};
  for (int i = 0; i < count; ++i) lanes[i] = from[i];
  return load(lanes);
}

template <class T>
CRAD_INLINE void store_first(T* to, Vector<accumulator<T>> vector, int count) {
#if CRAD_VECTOR_BYTES == 64
  const uint32_t first = (1u << count) - 1;
  if constexpr (is_half<T>)
    return _mm512_mask_cvtepi32_storeu_epi16(to, first,
                                             (__m512i)narrowed<WordLanes>(T{}, vector.lanes));
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(to, first, vector.lanes);
#elif CRAD_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>)
    return _mm256_maskstore_ps(to, first_lanes(count), vector.lanes);
#endif
  T lanes[Vector<accumulator<T>>::width];
  store(lanes, vector);
  for (int i = 0; i < count; ++i) to[i] = lanes[i];
}

// ---- channels that do not follow each other ----

// Stands for a pointer to channels that lie `step` elements apart.
template <class T>
struct Spread {
  const T* first;
  int64_t step;
};

template <class T>
CRAD_INLINE Spread<T> operator+(Spread<T> from, int64_t channels) {
  return {from.first + channels * from.step, from.step};
}

template <class T>
CRAD_INLINE Vector<accumulator<T>> load_first(Spread<T> from, int count) {
  T lanes[Vector<accumulator<T>>::width] = {};
  for (int i = 0; i < count; ++i) lanes[i] = from.first[i * from.step];
  return load(lanes);
}

template <class T>
CRAD_INLINE Vector<accumulator<T>> load(Spread<T> from) {
  return load_first(from, Vector<accumulator<T>>::width);
}

// The channels of the entry at an offset, in elements.
template <class T>
CRAD_INLINE const T* entry_at_offset(const T* grid, int64_t offset) {
  return grid + offset;
}

template <class T>
CRAD_INLINE Spread<T> entry_at_offset(Spread<T> grid, int64_t offset) {
  return {grid.first + offset, grid.step};
}

// ---- stores past the caches, for results larger than they are ----

// What is streamed at once, in bytes, and its alignment: half as much of halves, whose rows are
// half as long.
template <class T>
constexpr int kStreamBytes = is_half<T> ? 16 : 32;

// The first `count` lanes; they and `to` are multiples of kStreamBytes.
template <class T>
CRAD_INLINE void stream_first(T* to, Vector<accumulator<T>> vector, int count) {
  const auto lanes = stored<T>(vector);
  const int bytes = count * static_cast<int>(sizeof(T));
#if CRAD_VECTOR_BYTES > 16
  const char* const from = reinterpret_cast<const char*>(&lanes);
  constexpr int size = kStreamBytes<T>;
  for (int at = 0; at + size <= static_cast<int>(sizeof(lanes)) && at < bytes; at += size) {
    char* const piece_to = reinterpret_cast<char*>(to) + at;
    if constexpr (size == 32) {
      __m256i piece;
      memcpy(&piece, from + at, size);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(piece_to), piece);
    } else {
      __m128i piece;
      memcpy(&piece, from + at, size);
      _mm_stream_si128(reinterpret_cast<__m128i*>(piece_to), piece);
    }
  }
#else
  memcpy(to, &lanes, bytes);
#endif
}

CRAD_INLINE void finish_streaming() {
#if CRAD_VECTOR_BYTES > 16
  _mm_sfence();
#endif
}

// Calls f(channel, load, store) for each vector of channels in [begin, end), the last one partial.
// If `streaming`, the stores go past the caches: for rows that are aligned to kStreamBytes.
template <class A, bool streaming = false, class F>
CRAD_INLINE void for_each_vector(int64_t begin, int64_t end, F f) {
  int64_t channel = begin;
  for (; channel + Vector<A>::width <= end; channel += Vector<A>::width)
    f(
        channel, [](auto from) __attribute__((always_inline)) { return load(from); },
        [](auto* to, Vector<A> vector) __attribute__((always_inline)) {
          if constexpr (streaming)
            stream_first(to, vector, Vector<A>::width);
          else
            store(to, vector);
        });
  if (const int rest = static_cast<int>(end - channel))
    f(
        channel,
        [rest](auto from) __attribute__((always_inline)) { return load_first(from, rest); },
        [rest](auto* to, Vector<A> vector) __attribute__((always_inline)) {
          if constexpr (streaming)
            stream_first(to, vector, rest);
          else
            store_first(to, vector, rest);
        });
}

// ---- vectors of which some lanes are read or written, as their bits say: lane 0 the lowest ----

#if CRAD_VECTOR_BYTES > 16

// Of 8 floats, or of 16 where the instruction set has vectors as wide.
template <int width>
struct MaskedVector;

template <>
struct MaskedVector<8> {
  __m256 lanes;

  static MaskedVector broadcast(float value) { return {_mm256_set1_ps(value)}; }

  // Lane i of the result is lane `from[i]` of this.
  MaskedVector permuted(const int32_t (&from)[16]) const {
    return {_mm256_permutevar8x32_ps(lanes,
                                     _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }

#if CRAD_VECTOR_BYTES == 64
  using Bits = __mmask8;
  static MaskedVector load(const float* from, Bits bits) {
    return {_mm256_maskz_loadu_ps(bits, from)};
  }
  void store(float* to, Bits bits) const { _mm256_mask_storeu_ps(to, bits, lanes); }
  MaskedVector only(Bits bits) const { return {_mm256_maskz_mov_ps(bits, lanes)}; }
  MaskedVector with(float value, Bits bits) const {
    return {_mm256_mask_broadcastss_ps(lanes, bits, _mm_set_ss(value))};
  }
#else
  // All ones in the lanes.
  struct Bits {
    __m256i mask;
    Bits(uint32_t bits) {
      const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), bit), bit);
    }
  };
  static MaskedVector load(const float* from, Bits bits) {
    return {_mm256_maskload_ps(from, bits.mask)};
  }
  void store(float* to, Bits bits) const { _mm256_maskstore_ps(to, bits.mask, lanes); }
  MaskedVector only(Bits bits) const {
    return {_mm256_and_ps(lanes, _mm256_castsi256_ps(bits.mask))};
  }
  MaskedVector with(float value, Bits bits) const {
    return {_mm256_blendv_ps(lanes, _mm256_set1_ps(value), _mm256_castsi256_ps(bits.mask))};
  }
#endif
};

#if CRAD_VECTOR_BYTES == 64
template <>
struct MaskedVector<16> {
  __m512 lanes;
  using Bits = __mmask16;

  static MaskedVector broadcast(float value) { return {_mm512_set1_ps(value)}; }
  MaskedVector permuted(const int32_t (&from)[16]) const {
    return {_mm512_permutexvar_ps(_mm512_loadu_si512(from), lanes)};
  }
  static MaskedVector load(const float* from, Bits bits) {
    return {_mm512_maskz_loadu_ps(bits, from)};
  }
  void store(float* to, Bits bits) const { _mm512_mask_storeu_ps(to, bits, lanes); }
  MaskedVector only(Bits bits) const { return {_mm512_maskz_mov_ps(bits, lanes)}; }
  MaskedVector with(float value, Bits bits) const {
    return {_mm512_mask_broadcastss_ps(lanes, bits, _mm_set_ss(value))};
  }
};

#endif

// (Not friends, which GCC compiles for the baseline.)
template <int width>
CRAD_INLINE MaskedVector<width> multiply_add(MaskedVector<width> a, MaskedVector<width> b,
                                             MaskedVector<width> c) {
  if constexpr (width == 8)
    return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)};
  else
    return {CRAD_INTRINSIC(fmadd_ps)(a.lanes, b.lanes, c.lanes)};
}
template <int width>
CRAD_INLINE MaskedVector<width> operator*(MaskedVector<width> a, MaskedVector<width> b) {
  return {a.lanes * b.lanes};
}

#endif

}  // namespace
}  // namespace crad
