// A vector register's worth of channels, loaded from any storage type. CRAD_VECTOR_BYTES says how
// wide the registers of the instruction set are that this file is being compiled for.
#pragma once

#include <cstdint>
#include <cstring>

#if CRAD_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

namespace crad {
namespace {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that sums are taken in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator = typename Accumulator<T>::type;

template <class A>
struct Pack {
  static constexpr int width = CRAD_VECTOR_BYTES / sizeof(A);
  typedef A Lanes __attribute__((vector_size(CRAD_VECTOR_BYTES)));
  Lanes lanes;
};

template <class A>
inline Pack<A> broadcast(A value) {
  return {typename Pack<A>::Lanes{} + value};
}

// a * b + c, rounded once where the instruction set can.
inline Pack<float> multiply_add(Pack<float> a, Pack<float> b, Pack<float> c) {
#if CRAD_VECTOR_BYTES == 64
  return {(Pack<float>::Lanes)_mm512_fmadd_ps((__m512)a.lanes, (__m512)b.lanes, (__m512)c.lanes)};
#elif CRAD_VECTOR_BYTES == 32
  return {(Pack<float>::Lanes)_mm256_fmadd_ps((__m256)a.lanes, (__m256)b.lanes, (__m256)c.lanes)};
#else
  return {a.lanes * b.lanes + c.lanes};
#endif
}

inline Pack<double> multiply_add(Pack<double> a, Pack<double> b, Pack<double> c) {
#if CRAD_VECTOR_BYTES == 64
  return {
      (Pack<double>::Lanes)_mm512_fmadd_pd((__m512d)a.lanes, (__m512d)b.lanes, (__m512d)c.lanes)};
#elif CRAD_VECTOR_BYTES == 32
  return {
      (Pack<double>::Lanes)_mm256_fmadd_pd((__m256d)a.lanes, (__m256d)b.lanes, (__m256d)c.lanes)};
#else
  return {a.lanes * b.lanes + c.lanes};
#endif
}

// The sum of the lanes, halving the vector until it has 16 bytes.
template <class A, int bytes = CRAD_VECTOR_BYTES>
inline A sum_lanes(const void* lanes) {
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

// The sums of the lanes of N packs.
template <int N, class A>
inline void sums(const Pack<A> (&packs)[N], A* result) {
  for (int k = 0; k < N; ++k) result[k] = sum_lanes<A>(&packs[k]);
}

#if CRAD_VECTOR_BYTES == 64
// Of four at once: each addition halves what is left of two of them.
template <int N>
inline void sums(const Pack<float> (&packs)[N], float* result) {
  const auto both = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const auto pack = [&](int k) { return k < N ? (__m512)packs[k].lanes : _mm512_setzero_ps(); };
  for (int k = 0; k < N; k += 4) {
    const __m512 even = both(pack(k), pack(k + 1)), odd = both(pack(k + 2), pack(k + 3));
    const __m512 four =
        _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x44), _mm512_shuffle_ps(even, odd, 0xEE));
    const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
    const __m128 one = _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
    memcpy(result + k, &one, (N - k < 4 ? N - k : 4) * sizeof(float));
  }
}
#endif

// ---- whole packs ----

template <class A>
inline Pack<A> load(const A* from) {
  Pack<A> pack;
  memcpy(&pack, from, sizeof(pack));
  return pack;
}

template <class A>
inline void store(A* to, Pack<A> pack) {
  memcpy(to, &pack, sizeof(pack));
}

typedef uint16_t HalfLanes __attribute__((vector_size(CRAD_VECTOR_BYTES / 2)));
typedef uint32_t WordLanes __attribute__((vector_size(CRAD_VECTOR_BYTES)));
typedef int32_t IntLanes __attribute__((vector_size(CRAD_VECTOR_BYTES)));

// (GCC takes four instructions to widen what the processor widens in one.)
inline WordLanes load_halves(const void* from) {
#if CRAD_VECTOR_BYTES == 64
  return (WordLanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif CRAD_VECTOR_BYTES == 32
  return (WordLanes)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  HalfLanes halves;
  memcpy(&halves, from, sizeof(halves));
  return __builtin_convertvector(halves, WordLanes);
#endif
}

inline void store_halves(void* to, WordLanes words) {
  const HalfLanes halves = __builtin_convertvector(words, HalfLanes);
  memcpy(to, &halves, sizeof(halves));
}

inline Pack<float> widened(const bfloat16*, WordLanes halves) {
  return {(Pack<float>::Lanes)(halves << 16)};
}

// To nearest, half to even; NaN stays NaN.
inline WordLanes narrowed(const bfloat16*, Pack<float> pack) {
  const WordLanes bits = (WordLanes)pack.lanes;
  const WordLanes rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const IntLanes is_number = pack.lanes == pack.lanes;
  return ((WordLanes)is_number & rounded) | (~(WordLanes)is_number & 0x7FC0);
}

inline Pack<float> widened(const float16*, WordLanes half) {
  const WordLanes magnitude = (half & 0x7FFF) << 13;
  // The exponent's bias differs by 112; the product is exact, also for subnormal halves.
  const Pack<float>::Lanes scaled = (Pack<float>::Lanes)magnitude * 0x1p112f;
  const WordLanes special = (WordLanes)(magnitude >= 0x0F800000) & 0x7F800000;
  return {(Pack<float>::Lanes)((WordLanes)scaled | special | ((half & 0x8000) << 16))};
}

// To nearest, half to even; overflow to infinity, NaN stays NaN.
inline WordLanes narrowed(const float16*, Pack<float> pack) {
  const WordLanes bits = (WordLanes)pack.lanes;
  const WordLanes magnitude = bits & 0x7FFFFFFF;
  const WordLanes normal = (magnitude - 0x38000000 + 0xFFF + ((bits >> 13) & 1)) >> 13;
  // Adding 1/2 rounds a value below 2^-14 to a multiple of 2^-24, a subnormal half.
  const Pack<float>::Lanes shifted = (Pack<float>::Lanes)magnitude + 0.5f;
  const WordLanes subnormal = (WordLanes)shifted - 0x3F000000;
  const WordLanes is_subnormal = (WordLanes)(magnitude < 0x38800000);
  const WordLanes is_overflow = (WordLanes)(magnitude >= 0x477FF000);
  const WordLanes is_nan = (WordLanes)(magnitude > 0x7F800000);
  WordLanes half = (is_subnormal & subnormal) | (~is_subnormal & normal);
  half = (is_overflow & 0x7C00) | (~is_overflow & half);
  half = (is_nan & 0x7E00) | (~is_nan & half);
  return half | ((bits >> 16) & 0x8000);
}

inline Pack<float> load(const bfloat16* from) { return widened(from, load_halves(from)); }
inline Pack<float> load(const float16* from) { return widened(from, load_halves(from)); }
inline void store(bfloat16* to, Pack<float> pack) { store_halves(to, narrowed(to, pack)); }
inline void store(float16* to, Pack<float> pack) { store_halves(to, narrowed(to, pack)); }

// ---- the first `count` lanes of a pack; the others are 0 ----

template <class T>
inline Pack<accumulator<T>> load_first(const T* from, int count) {
  T lanes[Pack<accumulator<T>>::width] = {};
  for (int i = 0; i < count; ++i) lanes[i] = from[i];
  return load(lanes);
}

template <class T>
inline void store_first(T* to, Pack<accumulator<T>> pack, int count) {
  T lanes[Pack<accumulator<T>>::width];
  store(lanes, pack);
  for (int i = 0; i < count; ++i) to[i] = lanes[i];
}

#if CRAD_VECTOR_BYTES == 64
inline Pack<float> load_first(const float* from, int count) {
  return {(Pack<float>::Lanes)_mm512_maskz_loadu_ps((1u << count) - 1, from)};
}

inline void store_first(float* to, Pack<float> pack, int count) {
  _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)pack.lanes);
}

inline WordLanes load_first_halves(const void* from, int count) {
  return (WordLanes)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((1u << count) - 1, from));
}

inline void store_first_halves(void* to, WordLanes words, int count) {
  _mm512_mask_cvtepi32_storeu_epi16(to, (1u << count) - 1, (__m512i)words);
}

inline Pack<float> load_first(const bfloat16* from, int count) {
  return widened(from, load_first_halves(from, count));
}

inline Pack<float> load_first(const float16* from, int count) {
  return widened(from, load_first_halves(from, count));
}

inline void store_first(bfloat16* to, Pack<float> pack, int count) {
  store_first_halves(to, narrowed(to, pack), count);
}

inline void store_first(float16* to, Pack<float> pack, int count) {
  store_first_halves(to, narrowed(to, pack), count);
}
#elif CRAD_VECTOR_BYTES == 32
inline __m256i first_lanes(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

inline Pack<float> load_first(const float* from, int count) {
  return {(Pack<float>::Lanes)_mm256_maskload_ps(from, first_lanes(count))};
}

inline void store_first(float* to, Pack<float> pack, int count) {
  _mm256_maskstore_ps(to, first_lanes(count), (__m256)pack.lanes);
}
#endif

// ---- channels that do not follow each other ----

// Stands for a pointer to channels that lie `step` elements apart.
template <class T>
struct Spread {
  const T* first;
  int64_t step;
};

template <class T>
inline Spread<T> operator+(Spread<T> from, int64_t channels) {
  return {from.first + channels * from.step, from.step};
}

template <class T>
inline Pack<accumulator<T>> load_first(Spread<T> from, int count) {
  T lanes[Pack<accumulator<T>>::width] = {};
  for (int i = 0; i < count; ++i) lanes[i] = from.first[i * from.step];
  return load(lanes);
}

template <class T>
inline Pack<accumulator<T>> load(Spread<T> from) {
  return load_first(from, Pack<accumulator<T>>::width);
}

// The channels of the entry at an offset, in elements.
template <class T>
inline const T* entry_at_offset(const T* grid, int64_t offset) {
  return grid + offset;
}

template <class T>
inline Spread<T> entry_at_offset(Spread<T> grid, int64_t offset) {
  return {grid.first + offset, grid.step};
}

// ---- stores past the caches, for results larger than they are ----

// What is streamed at once, in bytes, and its alignment: half as much of halves, whose rows are
// half as long.
template <class T>
constexpr int kStreamBytes = sizeof(T) == 2 ? 16 : 32;

// The first `bytes` bytes of a vector; `to` and `bytes` are multiples of `piece_bytes`.
template <int piece_bytes, class Lanes>
inline void stream_bytes(void* to, Lanes lanes, int bytes) {
#if CRAD_VECTOR_BYTES > 16
  for (int at = 0; at + piece_bytes <= static_cast<int>(sizeof(lanes)); at += piece_bytes) {
    if (at >= bytes) break;
    const char* const from = reinterpret_cast<const char*>(&lanes) + at;
    char* const piece_to = static_cast<char*>(to) + at;
    if constexpr (piece_bytes == 32) {
      __m256i piece;
      memcpy(&piece, from, sizeof(piece));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(piece_to), piece);
    } else {
      __m128i piece;
      memcpy(&piece, from, sizeof(piece));
      _mm_stream_si128(reinterpret_cast<__m128i*>(piece_to), piece);
    }
  }
#else
  memcpy(to, &lanes, bytes);
#endif
}

template <class T>
inline void stream_first(T* to, Pack<accumulator<T>> pack, int count) {
  if constexpr (sizeof(T) == 2) {
    const HalfLanes halves = __builtin_convertvector(narrowed(to, pack), HalfLanes);
    stream_bytes<kStreamBytes<T>>(to, halves, count * static_cast<int>(sizeof(T)));
  } else {
    stream_bytes<kStreamBytes<T>>(to, pack.lanes, count * static_cast<int>(sizeof(T)));
  }
}

inline void finish_streaming() {
#if CRAD_VECTOR_BYTES > 16
  _mm_sfence();
#endif
}

// Calls f(channel, load, store) for each pack of channels in [begin, end), the last one partial. If
// `streaming`, the stores go past the caches: for rows that are aligned to kStreamBytes.
template <class A, bool streaming = false, class F>
inline __attribute__((always_inline)) void for_each_pack(int64_t begin, int64_t end, F f) {
  int64_t channel = begin;
  for (; channel + Pack<A>::width <= end; channel += Pack<A>::width)
    f(
        channel, [](auto from) __attribute__((always_inline)) { return load(from); },
        [](auto* to, Pack<A> pack) __attribute__((always_inline)) {
          if constexpr (streaming)
            stream_first(to, pack, Pack<A>::width);
          else
            store(to, pack);
        });
  if (const int rest = static_cast<int>(end - channel))
    f(
        channel,
        [rest](auto from) __attribute__((always_inline)) { return load_first(from, rest); },
        [rest](auto* to, Pack<A> pack) __attribute__((always_inline)) {
          if constexpr (streaming)
            stream_first(to, pack, rest);
          else
            store_first(to, pack, rest);
        });
}

}  // namespace
}  // namespace crad
