// The jitter by itself: for those who compare backends, and for the gradient of a learnable jitter.
#pragma once

#include "../core/jitter.h"
#include "runtime.h"

namespace crad {

CRAD_KERNEL(kBlocks)
normals_of_points(const int64_t* seed, int64_t points, int ndim, float* normals) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= points) return;
  for (int d = 0; d < ndim; d += 4) {
    float normal[4];
    jitter_normals(static_cast<uint64_t>(*seed), p, d / 4, normal);
    CRAD_UNROLL
    for (int i = 0; i < 4; ++i)
      if (d + i < ndim) normals[p * ndim + d + i] = normal[i];
  }
}

}  // namespace crad
