#if defined(__x86_64__)
#include "avx2.h"

#include "table.h"
#include "untarget.h"
#endif
