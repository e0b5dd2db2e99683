// The standard headers of the kernels. They come before anything that names an instruction set:
// their inline functions are shared by the whole library, and must run on every processor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
