// Words of Philox for several points at once: compilers do not find the instruction that multiplies
// words to twice their width.
#pragma once

#include "../core/philox.h"

#if CRAD_VECTOR_BYTES > 16
#include <immintrin.h>

namespace crad {
namespace {

// A word in the lower half of every 64-bit lane; what the upper half holds does not matter.
#if CRAD_VECTOR_BYTES == 64
struct WordVector {
  static constexpr int width = 8;
  __m512i lanes;
};

inline WordVector product_of(WordVector a, uint32_t b) {
  return {_mm512_mul_epu32(a.lanes, _mm512_set1_epi64(b))};
}
inline WordVector high_half(WordVector product) { return {_mm512_srli_epi64(product.lanes, 32)}; }
inline WordVector exclusive_or(WordVector a, WordVector b, uint32_t c) {
  constexpr int kAllThree = 0x96;  // the truth table
  return {_mm512_ternarylogic_epi64(a.lanes, b.lanes, _mm512_set1_epi64(c), kAllThree)};
}
inline WordVector load_words(const int64_t* from) { return {_mm512_loadu_si512(from)}; }
inline WordVector repeated(uint32_t word) { return {_mm512_set1_epi64(word)}; }
inline void store_words(uint32_t* to, WordVector words) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(words.lanes));
}
#else
struct WordVector {
  static constexpr int width = 4;
  __m256i lanes;
};

inline WordVector product_of(WordVector a, uint32_t b) {
  return {_mm256_mul_epu32(a.lanes, _mm256_set1_epi64x(b))};
}
inline WordVector high_half(WordVector product) { return {_mm256_srli_epi64(product.lanes, 32)}; }
inline WordVector exclusive_or(WordVector a, WordVector b, uint32_t c) {
  return {_mm256_xor_si256(_mm256_xor_si256(a.lanes, b.lanes), _mm256_set1_epi64x(c))};
}
inline WordVector load_words(const int64_t* from) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
}
inline WordVector repeated(uint32_t word) { return {_mm256_set1_epi64x(word)}; }
inline void store_words(uint32_t* to, WordVector words) {
  const __m256i low =
      _mm256_permutevar8x32_epi32(words.lanes, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(low));
}
#endif

inline WordVector low_half(WordVector product) { return product; }

}  // namespace
}  // namespace crad
#endif
