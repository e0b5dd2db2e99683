// Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include <cstdint>

#include "macros.h"

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

template <class Word>
CRAD_INLINE WordsOf<Word> philox_round(WordsOf<Word> counter, uint32_t key0, uint32_t key1) {
  const auto product0 = product_of(counter.word[0], 0xD2511F53);
  const auto product1 = product_of(counter.word[2], 0xCD9E8D57);
  return {{exclusive_or(high_half(product1), counter.word[1], key0), low_half(product1),
           exclusive_or(high_half(product0), counter.word[3], key1), low_half(product0)}};
}

// A recursion and not a loop, so that compilers vectorise over counters.
template <int rounds, class Word>
CRAD_INLINE WordsOf<Word> philox_rounds(WordsOf<Word> counter, uint32_t key0, uint32_t key1) {
  if constexpr (rounds == 0)
    return counter;
  else
    return philox_rounds<rounds - 1>(philox_round(counter, key0, key1), key0 + 0x9E3779B9,
                                     key1 + 0xBB67AE85);
}

template <class Word>
CRAD_INLINE WordsOf<Word> philox(WordsOf<Word> counter, uint64_t key) {
  return philox_rounds<10>(counter, static_cast<uint32_t>(key), high_half(key));
}

}  // namespace
}  // namespace crad
