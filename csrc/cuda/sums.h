// Sums of the partial results of blocks, in a fixed order.
#pragma once

#include "vector.h"

namespace crad {

// A block sums `columns` results, a power of two. Its rows of threads share the parts, row r taking
// r, r + rows and so on; then the rows are added up by halves.
template <class To, class A>
CRAD_KERNEL(kBlocks)
sum_parts(const A* parts, int64_t number, int64_t count, int columns, To* to) {
  CRAD_SHARED_MEMORY(memory);
  A* const sums = reinterpret_cast<A*>(memory);
  const int column = threadIdx.x % columns, row = threadIdx.x / columns;
  const int rows = blockDim.x / columns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * columns + column;
  A total = 0;
  if (i < count) CRAD_UNROLL
  for (int64_t part = row; part < number; part += rows) total += parts[part * count + i];
  sums[threadIdx.x] = total;
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) sums[threadIdx.x] += sums[threadIdx.x + half * columns];
  }
  if (row > 0 || i >= count) return;
  To rounded;
  narrow(sums[threadIdx.x], rounded);
  to[i] = rounded;
}

}  // namespace crad
