// The kernels for float16 values.
#include "kernels_impl.h"

template struct crad::Kernels<crad::float16>;
