// The kernels for bfloat16 values.
#include "kernels_impl.h"

template struct crad::Kernels<crad::bfloat16>;
