// From here to untarget.h: for processors with AVX2 and FMA (Intel Haswell, AMD Zen, and later).
#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define CRAD_VECTOR_BYTES 32
#define CRAD_KERNELS kernels_avx2
#define CRAD_LEVEL_KERNELS level_kernels_avx2
