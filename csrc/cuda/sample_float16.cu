// The kernels for float16 values.
#include "launches_impl.h"

template struct crad::Launches<crad::float16>;
