// How the kernels of several levels are cut into blocks.
#pragma once

#include "plan.h"

namespace crad {

struct LevelPlan {
  int lanes;    // threads that share a point: neighbours, which take its levels in turn
  int threads;  // of a block
  int64_t blocks;
};

// Neighbours write a sector of memory together, at least. Where there would be few blocks, more of
// them share a point, and then blocks are smaller.
inline LevelPlan plan_levels(int64_t points, int64_t levels, int64_t channels,
                             const Device& device) {
  constexpr int64_t kSector = 32, kChannel = sizeof(float);  // bytes
  LevelPlan plan{1, device.threads, 0};
  const auto blocks = [&] { return ceil_div(points * plan.lanes, int64_t{plan.threads}); };
  const int64_t enough = 4 * device.multiprocessors;
  while (plan.lanes < levels && plan.lanes < kWarp &&
         (plan.lanes * channels * kChannel < kSector || blocks() < enough))
    plan.lanes *= 2;
  while (plan.threads > kWarp && blocks() < device.multiprocessors) plan.threads /= 2;
  plan.blocks = blocks();
  return plan;
}

}  // namespace crad
