// The kernels for float64 values.
#include "launches_impl.h"

template struct crad::Launches<double>;
