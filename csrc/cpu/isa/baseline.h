// For any processor.
#include "standard.h"

#define CRAD_VECTOR_BYTES 16
#define CRAD_KERNELS kernels_baseline
#define CRAD_LEVEL_KERNELS level_kernels_baseline
