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

CRAD_INLINE FourLanes load_four(const float* from) {
  FourLanes four;
  memcpy(&four, from, sizeof(four));
  return four;
}
CRAD_INLINE void store_four(float* to, FourLanes four) { memcpy(to, &four, sizeof(four)); }

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

// Lanes of which something holds.
#if CRAD_VECTOR_BYTES == 64
using LaneMask = __mmask16;
#else
using LaneMask = IntLanes;
#endif

CRAD_INLINE bool every(LaneMask lanes) {
#if CRAD_VECTOR_BYTES == 64
  return lanes == 0xFFFF;
#elif CRAD_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)lanes) == 0xFF;
#else
  int32_t bits = -1;
  for (int i = 0; i < kLanes; ++i) bits &= lanes[i];
  return bits != 0;
#endif
}

// Those in (low, high).
CRAD_INLINE LaneMask between(FloatLanes x, float low, float high) {
#if CRAD_VECTOR_BYTES == 64
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(low), _CMP_GT_OQ);
  return _mm512_mask_cmp_ps_mask(above, (__m512)x, _mm512_set1_ps(high), _CMP_LT_OQ);
#else
  return (x > low) & (x < high);
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
    const FloatLanes large =
        x < 0.0f ? -constant<FloatLanes>(kWhole) : constant<FloatLanes>(kWhole);
    return is_small(x) ? (x + large) - large : x;
#endif
  }

  CRAD_INLINE bool within(FloatLanes x, float limit) { return every(between(x, -limit, limit)); }

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

#if CRAD_VECTOR_BYTES == 16
 private:
  static constexpr float kWhole = 1 << 23;  // from here on all floats are whole numbers
  CRAD_INLINE IntLanes is_small(FloatLanes x) { return (x > -kWhole) & (x < kWhole); }
  CRAD_INLINE IntLanes whole_or_zero(FloatLanes x) {
    return __builtin_convertvector(is_small(x) ? x : FloatLanes{}, IntLanes);
  }
#endif
};

// (Laid out here, see simd.h.)
template struct Index<FloatLanes>;

// The whole number, or some number below 0 if it is none or out of range.
CRAD_INLINE IntLanes to_int(FloatLanes whole) {
#if CRAD_VECTOR_BYTES == 64
  return (IntLanes)_mm512_cvttps_epi32((__m512)whole);
#elif CRAD_VECTOR_BYTES == 32
  return (IntLanes)_mm256_cvttps_epi32((__m256)whole);
#else
  const IntLanes fits = (whole > -0x1p31f) & (whole < 0x1p31f);
  return fits ? __builtin_convertvector(fits ? whole : FloatLanes{}, IntLanes) : ~IntLanes{};
#endif
}

// The nearest whole number, of two the even one; else as above.
CRAD_INLINE IntLanes rounded_to_int(FloatLanes x) {
#if CRAD_VECTOR_BYTES == 64
  return (IntLanes)_mm512_cvtps_epi32((__m512)x);
#elif CRAD_VECTOR_BYTES == 32
  return (IntLanes)_mm256_cvtps_epi32((__m256)x);
#else
  return to_int(Numbers<FloatLanes>::round_to_even(x));
#endif
}

// Those in [first, last], which must not be empty.
CRAD_INLINE LaneMask within(IntLanes entry, int32_t first, int32_t last) {
#if CRAD_VECTOR_BYTES == 64
  return _mm512_cmple_epu32_mask((__m512i)(entry - first), _mm512_set1_epi32(last - first));
#elif CRAD_VECTOR_BYTES == 32
  const __m256i above = (__m256i)(entry - first), most = _mm256_set1_epi32(last - first);
  return (IntLanes)_mm256_cmpeq_epi32(_mm256_min_epu32(above, most), above);
#else
  return (entry >= first) & (entry <= last);
#endif
}

// A bit for each lane.
CRAD_INLINE uint32_t bits_of(LaneMask lanes) {
#if CRAD_VECTOR_BYTES == 64
  return lanes;
#elif CRAD_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)lanes);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (lanes[i] & 1u) << i;
  return bits;
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
  const FloatLanes before = constant<FloatLanes>(-taps), behind = constant<FloatLanes>(size);
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
//
// By a load for each lane, and not by the instruction that gathers. Where the processor's microcode
// keeps this one from reading ahead (Intel before Sapphire Rapids), it takes 27 cycles for any
// number of lanes, and elsewhere it saves an eighth at most.

#if CRAD_VECTOR_BYTES > 16
// What lies at eight offsets, and behind: N in all.
template <int N>
CRAD_INLINE void gather_eight(const float* base, const uint32_t* at, __m256 (&result)[N]) {
  if constexpr (N == 1) {
    const auto lane = [&](int i) __attribute__((always_inline)) {
      return _mm256_broadcast_ss(base + at[i]);
    };
    const __m256 a = _mm256_blend_ps(lane(0), lane(1), 0x02);
    const __m256 b = _mm256_blend_ps(lane(2), lane(3), 0x08);
    const __m256 c = _mm256_blend_ps(lane(4), lane(5), 0x20);
    const __m256 d = _mm256_blend_ps(lane(6), lane(7), 0x80);
    result[0] = _mm256_blend_ps(_mm256_blend_ps(a, b, 0x0C), _mm256_blend_ps(c, d, 0xC0), 0xF0);
  } else if constexpr (N == 2) {
    const auto two = [&](int i) __attribute__((always_inline)) {
      return _mm256_broadcast_sd(reinterpret_cast<const double*>(base + at[i]));
    };
    // Points 0, 1, 4, 5 and 2, 3, 6, 7: the shuffle, half by half, brings them in order.
    const auto four = [&](int i) __attribute__((always_inline)) {
      return (__m256)_mm256_blend_pd(_mm256_blend_pd(two(i), two(i + 1), 0x2),
                                     _mm256_blend_pd(two(i + 4), two(i + 5), 0x8), 0xC);
    };
    const __m256 low = four(0), high = four(2);
    result[0] = _mm256_shuffle_ps(low, high, 0x88);
    result[1] = _mm256_shuffle_ps(low, high, 0xDD);
  } else {
    static_assert(N == 4);
    const auto row = [&](int i) __attribute__((always_inline)) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(base + at[i])),
                                  _mm_loadu_ps(base + at[i + 4]), 1);
    };
    const __m256 a = row(0), b = row(1), c = row(2), d = row(3);
    const __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
    const __m256 ab2 = _mm256_unpackhi_ps(a, b), cd2 = _mm256_unpackhi_ps(c, d);
    result[0] = _mm256_shuffle_ps(ab, cd, 0x44);
    result[1] = _mm256_shuffle_ps(ab, cd, 0xEE);
    result[2] = _mm256_shuffle_ps(ab2, cd2, 0x44);
    result[3] = _mm256_shuffle_ps(ab2, cd2, 0xEE);
  }
}
#endif

// What lies at an offset for each lane, and behind: N in all. No offset is negative.
template <int N>
CRAD_INLINE void gather(const float* base, const uint32_t* at, FloatLanes (&result)[N]) {
#if CRAD_VECTOR_BYTES == 64
  __m256 low[N], high[N];
  gather_eight(base, at, low);
  gather_eight(base, at + 8, high);
  for (int n = 0; n < N; ++n)
    result[n] = (FloatLanes)_mm512_insertf32x8(_mm512_castps256_ps512(low[n]), high[n], 1);
#elif CRAD_VECTOR_BYTES == 32
  __m256 eight[N];
  gather_eight(base, at, eight);
  for (int n = 0; n < N; ++n) result[n] = (FloatLanes)eight[n];
#else
  float lane[N][kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int n = 0; n < N; ++n) lane[n][i] = base[at[i] + n];
  for (int n = 0; n < N; ++n) result[n] = load_lanes(lane[n]);
#endif
}

template <int N>
CRAD_INLINE void gather(const float* base, const IntLanes& offset, FloatLanes (&result)[N]) {
#if CRAD_VECTOR_BYTES == 64
  if constexpr (N == 1) {
    // (Of so many lanes as quick as loads. It waits for the register that it fills, so that is
    // cleared before; GCC would leave this out if it knew that all lanes are gathered.)
    __mmask16 every = 0xFFFF;
    asm("" : "+Yk"(every));
    result[0] =
        (FloatLanes)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), every, (__m512i)offset, base, 4);
    return;
  }
#endif
  const uint32_t* at = reinterpret_cast<const uint32_t*>(&offset);
  asm("" : "+r"(at));  // in memory: GCC would take them out of the vector, by more instructions
  gather(base, at, result);
}

// What lies at the offsets alone.
CRAD_INLINE FloatLanes gathered(const float* base, const IntLanes& offset) {
  FloatLanes one[1];
  gather(base, offset, one);
  return one[0];
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
#if CRAD_VECTOR_BYTES == 64
  if constexpr (ndim == 2) {
    const IntLanes low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const __m512 x = (__m512)coord[1], y = (__m512)coord[0];
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(x, (__m512i)low, y));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(x, (__m512i)(low + 8), y));
    return;
  }
#elif CRAD_VECTOR_BYTES == 32
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
