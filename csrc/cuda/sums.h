// Sums of the partial results of blocks, in a fixed order.
#pragma once

#include "numbers.h"

namespace crad {

// A block sums `columns` results. Its rows of threads share the parts, row r taking r, r + rows and
// so on, and the sums of the rows are added in order.
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
  __syncthreads();
  if (row > 0 || i >= count) return;
  for (int other = 1; other < rows; ++other) total += sums[other * columns + column];
  To rounded;
  narrow(total, rounded);
  to[i] = rounded;
}

template <class To, class A>
void launch_sum(const void* parts, int64_t number, int64_t count, Stream stream, void* to) {
  constexpr int kFew = 4;  // parts
  const int columns = number <= kFew ? kThreads : 32;
  launch(sum_parts<To, A>, (count + columns - 1) / columns, kThreads, kThreads * sizeof(A), stream,
         static_cast<const A*>(parts), number, count, columns, static_cast<To*>(to));
}

}  // namespace crad
