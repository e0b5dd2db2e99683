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

CRAD_INLINE Words philox(Words counter, uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = high_half(key);
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = high_half(product1) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = high_half(product0) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace
}  // namespace crad
