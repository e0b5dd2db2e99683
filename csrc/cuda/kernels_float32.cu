// The kernels for float32 values.
#include "kernels_impl.h"

template struct crad::Kernels<float>;
