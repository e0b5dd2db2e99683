// From here to untarget.h: for processors with AVX-512 (Intel Skylake-X, AMD Zen 4, and later).
#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
// What loops write in halves, and packs read whole, would stall the processor.
#pragma GCC target("prefer-vector-width=512")
// GCC 11 and 12 warn of their own intrinsics, and of vectors that functions return, though all of
// these are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define CRAD_VECTOR_BYTES 64
#define CRAD_KERNELS kernels_avx512
#define CRAD_LEVEL_KERNELS level_kernels_avx512
