// Work on the threads of torch, whose number `torch.set_num_threads` sets.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace crad {

// Whether this process was forked after the library was loaded. The threads of OpenMP do not
// survive a fork, and the child would wait for them without end: it works alone.
inline bool is_forked = false;

// Calls f(begin, end) for parts of [0, count), which all together move so many bytes, to or from
// caches or memory.
//
// A thread moves 20 to 70 GB/s. Idle cores that share 20 us of work are done sooner than one, but a
// thread that has to wait for a busy core takes 10 to 60 ms. So what takes one thread 0.2 ms at
// most is not shared, and of more as many threads have a share as have 15 to 50 us to do.
template <class F>
void parallel(int64_t count, int64_t bytes, const F& f) {
  constexpr int64_t kAlone = 4 << 20, kShare = 1 << 20;
  if (count <= 0) return;
  if (is_forked || bytes <= kAlone) return f(int64_t{0}, count);
  const double share = static_cast<double>(count) * kShare / static_cast<double>(bytes);
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, static_cast<int64_t>(share)), f);
}

}  // namespace crad
