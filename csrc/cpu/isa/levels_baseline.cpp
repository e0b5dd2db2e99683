// The loops over several grids, for any processor.
#include "standard.h"

#define CRAD_VECTOR_BYTES 16
#define CRAD_KERNELS level_kernels_baseline
#include "../level_loops.h"
