// A short vector, of which some lanes are read or written, as its bits say: lane 0 the lowest.
#pragma once

#if CRAD_VECTOR_BYTES > 16
#include <immintrin.h>

#include <cstdint>

namespace crad {
namespace {

// Of 8 floats, or of 16 where the instruction set has vectors as wide.
template <int width>
struct Row;

template <>
struct Row<8> {
  __m256 lanes;

  static Row broadcast(float value) { return {_mm256_set1_ps(value)}; }

  // Lane i of the result is lane `from[i]` of this.
  Row permuted(const int32_t (&from)[16]) const {
    return {_mm256_permutevar8x32_ps(lanes,
                                     _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }

#if CRAD_VECTOR_BYTES == 64
  using Bits = __mmask8;
  static Row load(const float* from, Bits bits) { return {_mm256_maskz_loadu_ps(bits, from)}; }
  void store(float* to, Bits bits) const { _mm256_mask_storeu_ps(to, bits, lanes); }
  Row only(Bits bits) const { return {_mm256_maskz_mov_ps(bits, lanes)}; }
  Row with(float value, Bits bits) const {
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
  static Row load(const float* from, Bits bits) { return {_mm256_maskload_ps(from, bits.mask)}; }
  void store(float* to, Bits bits) const { _mm256_maskstore_ps(to, bits.mask, lanes); }
  Row only(Bits bits) const { return {_mm256_and_ps(lanes, _mm256_castsi256_ps(bits.mask))}; }
  Row with(float value, Bits bits) const {
    return {_mm256_blendv_ps(lanes, _mm256_set1_ps(value), _mm256_castsi256_ps(bits.mask))};
  }
#endif
};

// (Not friends, which GCC compiles for the baseline.)
inline Row<8> multiply_add(Row<8> a, Row<8> b, Row<8> c) {
  return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)};
}
inline Row<8> operator*(Row<8> a, Row<8> b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }

#if CRAD_VECTOR_BYTES == 64
template <>
struct Row<16> {
  __m512 lanes;
  using Bits = __mmask16;

  static Row broadcast(float value) { return {_mm512_set1_ps(value)}; }
  Row permuted(const int32_t (&from)[16]) const {
    return {_mm512_permutexvar_ps(_mm512_loadu_si512(from), lanes)};
  }
  static Row load(const float* from, Bits bits) { return {_mm512_maskz_loadu_ps(bits, from)}; }
  void store(float* to, Bits bits) const { _mm512_mask_storeu_ps(to, bits, lanes); }
  Row only(Bits bits) const { return {_mm512_maskz_mov_ps(bits, lanes)}; }
  Row with(float value, Bits bits) const {
    return {_mm512_mask_broadcastss_ps(lanes, bits, _mm_set_ss(value))};
  }
};

inline Row<16> multiply_add(Row<16> a, Row<16> b, Row<16> c) {
  return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)};
}
inline Row<16> operator*(Row<16> a, Row<16> b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
#endif

}  // namespace
}  // namespace crad
#endif
