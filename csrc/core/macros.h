// How functions of the innermost loops are declared, and all of csrc/core. Internal linkage: the
// same header is compiled for several instruction sets, and the linker must not take one copy for
// all.
#pragma once

// A loop around a call is no vector code, and compilers inline less the longer a file is.
#define CRAD_ALWAYS_INLINE inline __attribute__((always_inline))

#if defined(__CUDACC__)
#define CRAD_INLINE static inline __host__ __device__
#else
#define CRAD_INLINE static CRAD_ALWAYS_INLINE
#endif
