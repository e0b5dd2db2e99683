// Standard normals as a pure function of (seed, point, component): Philox, then Box-Muller in
// float32 with branch-free polynomials, so that compilers vectorise it and every backend agrees.
#pragma once

#include <cmath>
#include <cstdint>

#include "numbers.h"

namespace crad {
namespace {

// Four words. A word may be a vector of them, whose type has the functions that follow, too.
template <class Word>
struct WordsOf {
  Word word[4];
};
using Words = WordsOf<uint32_t>;

CRAD_INLINE uint64_t product_of(uint32_t a, uint32_t b) { return uint64_t{a} * b; }
CRAD_INLINE uint32_t low_half(uint64_t product) { return static_cast<uint32_t>(product); }
CRAD_INLINE uint32_t high_half(uint64_t product) { return static_cast<uint32_t>(product >> 32); }
CRAD_INLINE uint32_t exclusive_or(uint32_t a, uint32_t b, uint32_t c) { return a ^ b ^ c; }

// Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). A
// recursion and not a loop, so that compilers vectorise over counters.
template <int rounds = 10, class Word>
CRAD_INLINE WordsOf<Word> philox(WordsOf<Word> counter, uint32_t key0, uint32_t key1) {
  if constexpr (rounds == 0) {
    return counter;
  } else {
    const auto product0 = product_of(counter.word[0], 0xD2511F53);
    const auto product1 = product_of(counter.word[2], 0xCD9E8D57);
    const WordsOf<Word> next{
        {exclusive_or(high_half(product1), counter.word[1], key0), low_half(product1),
         exclusive_or(high_half(product0), counter.word[3], key1), low_half(product0)}};
    return philox<rounds - 1>(next, key0 + 0x9E3779B9, key1 + 0xBB67AE85);
  }
}

// log(u) for u in (0, 1], normal. u = m * 2^e with m in [sqrt(1/2), sqrt(2)), and
// log(m) = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172: the series to s^9 is exact to rounding.
CRAD_INLINE float log_unit(float u) {
  const int32_t bits = bit_cast<int32_t>(u), sqrt_half = 0x3F3504F3;
  const int32_t exponent = (bits - sqrt_half) >> 23;
  const float m = bit_cast<float>(bits - exponent * (1 << 23));
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  const float tail = s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9))));
  // log(2) in two parts: the first has few bits, so its product with the exponent is exact.
  const float e = static_cast<float>(exponent);
  return e * 0.693359375f + (2.0f * s + (2.0f * s * tail + e * -2.12194440e-4f));
}

// sin and cos of 2 pi * turn, for turn in [0, 1) a multiple of 2^-24: the reduction to an eighth of
// a turn is exact, and Taylor's series do the rest.
CRAD_INLINE void sincos_turn(float turn, float& sine, float& cosine) {
  const int32_t quadrant = static_cast<int32_t>(turn * 4.0f + 0.5f);
  const float x = (turn * 4.0f - static_cast<float>(quadrant)) * 1.57079632679f;
  const float x2 = x * x;
  const float s =
      x + x * x2 * (-1.0f / 6 + x2 * (1.0f / 120 + x2 * (-1.0f / 5040 + x2 * (1.0f / 362880))));
  const float c =
      1.0f - x2 * (0.5f + x2 * (-1.0f / 24 +
                                x2 * (1.0f / 720 + x2 * (-1.0f / 40320 + x2 * (1.0f / 3628800)))));
  const bool swap = quadrant & 1;
  const float sine_sign = quadrant & 2 ? -1.0f : 1.0f;
  const float cosine_sign = (quadrant + 1) & 2 ? -1.0f : 1.0f;
  sine = sine_sign * (swap ? c : s);
  cosine = cosine_sign * (swap ? s : c);
}

// Two independent standard normals from two random words (Box-Muller).
CRAD_INLINE void normal_pair(uint32_t a, uint32_t b, float& first, float& second) {
  const float unit = 1.0f / (1 << 24);
  const float u = (static_cast<float>(static_cast<int32_t>(a >> 8)) + 1.0f) * unit;
  const float turn = static_cast<float>(static_cast<int32_t>(b >> 8)) * unit;
  const float radius = sqrtf(-2.0f * log_unit(u));
  float sine, cosine;
  sincos_turn(turn, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

// Words 0 and 1 make the normals of components 4 * block and 4 * block + 1 of a point, words 2 and
// 3 those of the two after them.
CRAD_INLINE Words jitter_words(uint64_t seed, uint64_t point, uint32_t block) {
  const Words counter{{low_half(point), high_half(point), block, 0}};
  return philox(counter, low_half(seed), high_half(seed));
}

// The standard normals of components 4 * block to 4 * block + 3 of a point.
CRAD_INLINE void jitter_normals(uint64_t seed, uint64_t point, uint32_t block, float normal[4]) {
  const Words words = jitter_words(seed, point, block);
  normal_pair(words.word[0], words.word[1], normal[0], normal[1]);
  normal_pair(words.word[2], words.word[3], normal[2], normal[3]);
}

}  // namespace
}  // namespace crad
