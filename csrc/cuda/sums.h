// Sums of the partial results of blocks, in order.
#pragma once

#include "numbers.h"

namespace crad {

template <class To, class A>
CRAD_KERNEL(kBlocks)
sum_parts(const A* parts, int64_t number, int64_t count, To* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  A total = 0;
  CRAD_UNROLL
  for (int64_t part = 0; part < number; ++part) total += parts[part * count + i];
  To rounded;
  narrow(total, rounded);
  to[i] = rounded;
}

template <class To, class A>
void launch_sum(const void* parts, int64_t number, int64_t count, Stream stream, void* to) {
  launch(sum_parts<To, A>, (count + kThreads - 1) / kThreads, kThreads, 0, stream,
         static_cast<const A*>(parts), number, count, static_cast<To*>(to));
}

}  // namespace crad
