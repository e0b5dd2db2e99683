// The CPU kernels for any processor.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#define CRAD_VECTOR_BYTES 16
#define CRAD_KERNELS kernels_baseline
#include "table.h"
