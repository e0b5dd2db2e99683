// How the functions of csrc/core are declared. Internal linkage: the same header is compiled for
// several instruction sets, and the linker must not take one copy for all.
#pragma once

#if defined(__CUDACC__)
#define CRAD_INLINE static inline __host__ __device__
#else
#define CRAD_INLINE static inline
#endif
