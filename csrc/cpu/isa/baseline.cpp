// The CPU kernels for any processor.
#include "standard.h"

#define CRAD_VECTOR_BYTES 16
#define CRAD_KERNELS kernels_baseline
#include "table.h"
