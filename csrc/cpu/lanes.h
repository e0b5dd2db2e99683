// Vectors whose lanes are points: csrc/core in all lanes at once, and what is read at an offset of
// each.
#pragma once

#include "../core/axis.h"
#include "simd.h"

namespace crad {
namespace {

using FloatLanes = Vector<float>::Lanes;
constexpr int kLanes = Vector<float>::width;
constexpr uint32_t kEveryLane = (uint32_t{1} << kLanes) - 1;  // a bit for each

CRAD_INLINE FloatLanes load_lanes(const float* from) {
  FloatLanes lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
CRAD_INLINE void store_lanes(float* to, FloatLanes lanes) { memcpy(to, &lanes, sizeof(lanes)); }

// a * b + c
CRAD_INLINE FloatLanes multiply_add(FloatLanes a, FloatLanes b, FloatLanes c) {
  return multiply_add(Vector<float>{a}, Vector<float>{b}, Vector<float>{c}).lanes;
}

// Four channels of a point.
typedef float FourLanes __attribute__((vector_size(16)));

// a * b + c
CRAD_INLINE FourLanes multiply_add(FourLanes a, float b, FourLanes c) {
  const FourLanes each = {b, b, b, b};
#if CRAD_VECTOR_BYTES > 16
  return (FourLanes)_mm_fmadd_ps((__m128)a, (__m128)each, (__m128)c);
#else
  return a * each + c;
#endif
}

// The first `count` of them, which may be 0 or less; 0 in place of the others.
CRAD_INLINE FourLanes load_four(const float* from, int count) {
#if CRAD_VECTOR_BYTES > 16
  const __m128i wanted = _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3));
  return (FourLanes)_mm_maskload_ps(from, wanted);
#else
  FourLanes four = {};
  for (int i = 0; i < 4; ++i)
    if (i < count) four[i] = from[i];
  return four;
#endif
}

// ---- csrc/core ----

template <>
struct Numbers<FloatLanes> {
  using Element = float;

  CRAD_INLINE FloatLanes round_down(FloatLanes x) {
#if CRAD_VECTOR_BYTES == 64
    return (FloatLanes)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif CRAD_VECTOR_BYTES == 32
    return (FloatLanes)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const FloatLanes whole = __builtin_convertvector(whole_or_zero(x), FloatLanes);
    return is_small(x) ? (whole > x ? whole - 1.0f : whole) : x;
#endif
  }

  CRAD_INLINE FloatLanes round_to_even(FloatLanes x) {
#if CRAD_VECTOR_BYTES == 64
    return (FloatLanes)_mm512_roundscale_ps((__m512)x,
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif CRAD_VECTOR_BYTES == 32
    return (FloatLanes)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // The sum has no room for a fraction.
    const FloatLanes large = x < 0.0f ? -all<FloatLanes>(kWhole) : all<FloatLanes>(kWhole);
    return is_small(x) ? (x + large) - large : x;
#endif
  }

  // Whether all lanes lie in (-limit, limit).
  CRAD_INLINE bool within(FloatLanes x, float limit) {
    const IntLanes outside = ~((x > -limit) & (x < limit));
    return !any(outside);
  }

  template <class F>
  static __attribute__((noinline)) Index<FloatLanes> for_each_lane(const Index<FloatLanes>& index,
                                                                   F f) {
    Index<FloatLanes> result = index;
    for (int i = 0; i < kLanes; ++i) {
      const Index<float> lane = f(Index<float>{index.at[i], index.slope[i]});
      result.at[i] = lane.at;
      result.slope[i] = lane.slope;
    }
    return result;
  }

 private:
  CRAD_INLINE bool any(IntLanes lanes) {
#if CRAD_VECTOR_BYTES == 64
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif CRAD_VECTOR_BYTES == 32
    return !_mm256_testz_si256((__m256i)lanes, (__m256i)lanes);
#else
    int32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= lanes[i];
    return bits != 0;
#endif
  }

#if CRAD_VECTOR_BYTES == 16
  static constexpr float kWhole = 1 << 23;  // from here on all floats are whole numbers
  CRAD_INLINE IntLanes is_small(FloatLanes x) { return (x > -kWhole) & (x < kWhole); }
  CRAD_INLINE IntLanes whole_or_zero(FloatLanes x) {
    return __builtin_convertvector(is_small(x) ? x : FloatLanes{}, IntLanes);
  }
#endif
};

// (Laid out here, see simd.h.)
template struct Index<FloatLanes>;

// The lanes, a bit each, in [0, size).
CRAD_INLINE uint32_t lanes_inside(IntLanes entry, int32_t size) {
#if CRAD_VECTOR_BYTES == 64
  return _mm512_cmplt_epu32_mask((__m512i)entry, _mm512_set1_epi32(size));
#elif CRAD_VECTOR_BYTES == 32
  const __m256i last = _mm256_set1_epi32(size - 1), least = _mm256_min_epu32((__m256i)entry, last);
  return _mm256_movemask_ps((__m256)_mm256_cmpeq_epi32(least, (__m256i)entry));
#else
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i)
    lanes |= static_cast<uint32_t>(is_entry<int32_t>(entry[i], size)) << i;
  return lanes;
#endif
}

#if CRAD_VECTOR_BYTES < 64
CRAD_INLINE uint32_t lanes_set(IntLanes lanes) {
#if CRAD_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)lanes);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(lanes[i] & 1) << i;
  return bits;
#endif
}
#endif

// Those in [low, high].
CRAD_INLINE uint32_t lanes_between(FloatLanes x, float low, float high) {
#if CRAD_VECTOR_BYTES == 64
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(low), _CMP_GE_OQ);
  return _mm512_mask_cmp_ps_mask(above, (__m512)x, _mm512_set1_ps(high), _CMP_LE_OQ);
#else
  return lanes_set((x >= low) & (x <= high));
#endif
}

// Those in (low, high).
CRAD_INLINE uint32_t lanes_inside_of(FloatLanes x, float low, float high) {
#if CRAD_VECTOR_BYTES == 64
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(low), _CMP_GT_OQ);
  return _mm512_mask_cmp_ps_mask(above, (__m512)x, _mm512_set1_ps(high), _CMP_LT_OQ);
#else
  return lanes_set((x > low) & (x < high));
#endif
}

// Numbers of entries that fit.
CRAD_INLINE IntLanes to_int(FloatLanes whole) {
#if CRAD_VECTOR_BYTES == 64
  return (IntLanes)_mm512_cvttps_epi32((__m512)whole);
#elif CRAD_VECTOR_BYTES == 32
  return (IntLanes)_mm256_cvttps_epi32((__m256)whole);
#else
  return __builtin_convertvector(whole, IntLanes);
#endif
}

// In every lane the number of the entry, or of the one that is nearest to it.
CRAD_INLINE IntLanes kept_inside(IntLanes entry, int32_t size) {
  const IntLanes first = {}, last = first + (size - 1);
  entry = entry < first ? first : entry;
  return entry > last ? last : entry;
}

// As that of csrc/core.
CRAD_INLINE IntLanes entry_at(FloatLanes position, int32_t size, int taps) {
  const FloatLanes before = all<FloatLanes>(-taps), behind = all<FloatLanes>(size);
  const FloatLanes above = position > before ? position : before;
  return to_int(above < behind ? above : behind);
}

// The lanes whose bits are set; 0 in the others.
CRAD_INLINE FloatLanes only(FloatLanes from, uint32_t lanes) {
#if CRAD_VECTOR_BYTES == 64
  return (FloatLanes)_mm512_maskz_mov_ps(static_cast<__mmask16>(lanes), (__m512)from);
#else
  IntLanes bit;
  for (int i = 0; i < kLanes; ++i) bit[i] = 1 << i;
  const IntLanes set = (bit & static_cast<int32_t>(lanes)) != 0;
  return set ? from : FloatLanes{};
#endif
}

// ---- what lies at an offset of each lane ----

CRAD_INLINE FloatLanes gathered(const float* base, IntLanes offset) {
#if CRAD_VECTOR_BYTES == 64
  // The instruction waits for the register that it fills, so that is cleared before; GCC would
  // leave this out if it knew that all lanes are gathered.
  __mmask16 every = 0xFFFF;
  asm("" : "+Yk"(every));
  return (FloatLanes)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), every, (__m512i)offset, base, 4);
#elif CRAD_VECTOR_BYTES == 32
  const __m256 every = (__m256)_mm256_set1_epi32(-1);
  return (FloatLanes)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), base, (__m256i)offset, every, 4);
#else
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = base[offset[i]];
  return load_lanes(lane);
#endif
}

// In those lanes, 0 in others, for which nothing is read.
CRAD_INLINE FloatLanes gathered(const float* base, IntLanes offset, uint32_t lanes) {
#if CRAD_VECTOR_BYTES == 64
  return (FloatLanes)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), static_cast<__mmask16>(lanes),
                                              (__m512i)offset, base, 4);
#elif CRAD_VECTOR_BYTES == 32
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bit);
  return (FloatLanes)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), base, (__m256i)offset,
                                              (__m256)_mm256_cmpeq_epi32(set, bit), 4);
#else
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = lanes >> i & 1 ? base[offset[i]] : 0.0f;
  return load_lanes(lane);
#endif
}

#if CRAD_VECTOR_BYTES == 16
template <int N>
CRAD_INLINE void gather_each(const float* base, IntLanes offset, FloatLanes (&result)[N]) {
  float lane[N][kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int tap = 0; tap < N; ++tap) lane[tap][i] = base[offset[i] + tap];
  for (int tap = 0; tap < N; ++tap) result[tap] = load_lanes(lane[tap]);
}
#endif

// What lies there, and next to it.
CRAD_INLINE void gather_pairs(const float* base, IntLanes offset, FloatLanes (&pair)[2]) {
#if CRAD_VECTOR_BYTES == 64
  __mmask8 every = 0xFF;
  asm("" : "+Yk"(every));
  const auto eight = [&](__m256i from) __attribute__((always_inline)) {
    return (__m512)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), every, from, base, 4);
  };
  const __m512 low = eight(_mm512_castsi512_si256((__m512i)offset));
  const __m512 high = eight(_mm512_extracti64x4_epi64((__m512i)offset, 1));
  const IntLanes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  pair[0] = (FloatLanes)_mm512_permutex2var_ps(low, (__m512i)even, high);
  pair[1] = (FloatLanes)_mm512_permutex2var_ps(low, (__m512i)(even + 1), high);
#elif CRAD_VECTOR_BYTES == 32
  // Points 0, 1, 4, 5 and 2, 3, 6, 7: the shuffle, half by half, brings them in order.
  const __m256i apart = _mm256_permute4x64_epi64((__m256i)offset, 0xD8);
  const auto four = [&](__m128i from) __attribute__((always_inline)) {
    const __m256d every = (__m256d)_mm256_set1_epi64x(-1);
    return (__m256)_mm256_mask_i32gather_pd(_mm256_setzero_pd(),
                                            reinterpret_cast<const double*>(base), from, every, 4);
  };
  const __m256 low = four(_mm256_castsi256_si128(apart));
  const __m256 high = four(_mm256_extracti128_si256(apart, 1));
  pair[0] = (FloatLanes)_mm256_shuffle_ps(low, high, 0x88);
  pair[1] = (FloatLanes)_mm256_shuffle_ps(low, high, 0xDD);
#else
  gather_each(base, offset, pair);
#endif
}

// Four of them.
CRAD_INLINE void gather_fours(const float* base, IntLanes offset, FloatLanes (&four)[4]) {
#if CRAD_VECTOR_BYTES > 16
  int32_t at[kLanes];
  memcpy(at, &offset, sizeof(at));
  const auto eight = [&](const int32_t* at, __m256(&four)[4]) __attribute__((always_inline)) {
    const auto row = [&](int i) __attribute__((always_inline)) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(base + at[i])),
                                  _mm_loadu_ps(base + at[i + 4]), 1);
    };
    const __m256 a = row(0), b = row(1), c = row(2), d = row(3);
    const __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
    const __m256 ab2 = _mm256_unpackhi_ps(a, b), cd2 = _mm256_unpackhi_ps(c, d);
    four[0] = _mm256_shuffle_ps(ab, cd, 0x44);
    four[1] = _mm256_shuffle_ps(ab, cd, 0xEE);
    four[2] = _mm256_shuffle_ps(ab2, cd2, 0x44);
    four[3] = _mm256_shuffle_ps(ab2, cd2, 0xEE);
  };
#if CRAD_VECTOR_BYTES == 64
  __m256 low[4], high[4];
  eight(at, low);
  eight(at + 8, high);
  for (int tap = 0; tap < 4; ++tap)
    four[tap] = (FloatLanes)_mm512_insertf32x8(_mm512_castps256_ps512(low[tap]), high[tap], 1);
#else
  __m256 taps[4];
  eight(at, taps);
  for (int tap = 0; tap < 4; ++tap) four[tap] = (FloatLanes)taps[tap];
#endif
#else
  gather_each(base, offset, four);
#endif
}

// ---- coordinates ----

// The components of points that lie next to each other, along the axes.
template <int ndim>
CRAD_INLINE void load_coords(const float* from, FloatLanes (&coord)[ndim]) {
#if CRAD_VECTOR_BYTES == 64
  if constexpr (ndim == 2) {
    const __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
    const IntLanes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    coord[1] = (FloatLanes)_mm512_permutex2var_ps(low, (__m512i)even, high);
    coord[0] = (FloatLanes)_mm512_permutex2var_ps(low, (__m512i)(even + 1), high);
    return;
  }
#elif CRAD_VECTOR_BYTES == 32
  if constexpr (ndim == 2) {
    const __m256 low = _mm256_loadu_ps(from), high = _mm256_loadu_ps(from + 8);
    const __m256d x = (__m256d)_mm256_shuffle_ps(low, high, 0x88);
    const __m256d y = (__m256d)_mm256_shuffle_ps(low, high, 0xDD);
    coord[1] = (FloatLanes)_mm256_permute4x64_pd(x, 0xD8);
    coord[0] = (FloatLanes)_mm256_permute4x64_pd(y, 0xD8);
    return;
  }
#endif
  float apart[ndim][kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int axis = 0; axis < ndim; ++axis) apart[axis][i] = from[i * ndim + ndim - 1 - axis];
  for (int axis = 0; axis < ndim; ++axis) coord[axis] = load_lanes(apart[axis]);
}

// And back.
template <int ndim>
CRAD_INLINE void store_coords(float* to, const FloatLanes (&coord)[ndim]) {
#if CRAD_VECTOR_BYTES == 32
  if constexpr (ndim == 2) {
    const __m256 low = _mm256_unpacklo_ps((__m256)coord[1], (__m256)coord[0]);
    const __m256 high = _mm256_unpackhi_ps((__m256)coord[1], (__m256)coord[0]);
    _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
    return;
  }
#endif
  float apart[ndim][kLanes];
  for (int axis = 0; axis < ndim; ++axis) store_lanes(apart[axis], coord[axis]);
  for (int i = 0; i < kLanes; ++i)
    for (int axis = 0; axis < ndim; ++axis) to[i * ndim + ndim - 1 - axis] = apart[axis][i];
}

}  // namespace
}  // namespace crad
