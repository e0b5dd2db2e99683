#if defined(__x86_64__)
#include "avx2.h"

#include "../level_loops.h"
#include "untarget.h"
#endif
