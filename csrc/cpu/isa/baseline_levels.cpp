#include "baseline.h"

#include "../level_loops.h"
