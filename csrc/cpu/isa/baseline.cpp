#include "baseline.h"

#include "table.h"
