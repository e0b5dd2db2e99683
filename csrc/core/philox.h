// Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include <cstdint>

#include "macros.h"

namespace crad {
namespace {

struct Words {
  uint32_t word[4];
};

CRAD_INLINE uint32_t high_half(uint64_t product) { return static_cast<uint32_t>(product >> 32); }

CRAD_INLINE Words philox_round(Words counter, uint32_t key0, uint32_t key1) {
  const uint64_t product0 = uint64_t{0xD2511F53} * counter.word[0];
  const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.word[2];
  return {{high_half(product1) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
           high_half(product0) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
}

// A recursion and not a loop, so that compilers vectorise over counters.
template <int rounds>
CRAD_INLINE Words philox_rounds(Words counter, uint32_t key0, uint32_t key1) {
  if constexpr (rounds == 0)
    return counter;
  else
    return philox_rounds<rounds - 1>(philox_round(counter, key0, key1), key0 + 0x9E3779B9,
                                     key1 + 0xBB67AE85);
}

CRAD_INLINE Words philox(Words counter, uint64_t key) {
  return philox_rounds<10>(counter, static_cast<uint32_t>(key), high_half(key));
}

}  // namespace
}  // namespace crad
