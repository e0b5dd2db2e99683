// The kernels for float32 values.
#include "launches_impl.h"

template struct crad::Launches<float>;
