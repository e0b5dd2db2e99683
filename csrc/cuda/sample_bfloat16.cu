// The kernels for bfloat16 values.
#include "launches_impl.h"

template struct crad::Launches<crad::bfloat16>;
