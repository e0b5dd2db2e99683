// The kernels for float64 values.
#include "kernels_impl.h"

template struct crad::Kernels<double>;
