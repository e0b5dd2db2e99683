// What the loops over several grids are given, all sampled at the same points: see levels.cpp.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace crad {

constexpr int kMostLevelAxes = 4;
constexpr int64_t kMostLevelChannels = 8;

// Grids of float32, each a call of its own whose points and options are those of all. They are
// dense, have two entries or more along every axis, and no tap is moved by its padding; the mode is
// linear.
struct Levels {
  const Problem* level;
  int64_t number;
};

// The rows of a sample hold the channels of all levels, one level after the other.
struct LevelKernels {
  // `streaming`: past the caches, for rows that are aligned for that.
  void (*sample)(const Levels&, const Range&, float* output, bool streaming);
  void (*coords_gradient)(const Levels&, const Range&, const float* grad_output,
                          float* grad_coords);
  // Of some levels alone, whose numbers are given: adds to each one's own gradient.
  void (*values_gradient)(const Levels&, const int64_t* some, int64_t count, const Range&,
                          const float* grad_output, float* const* grad_values);
};

extern const LevelKernels level_kernels_baseline;
#if defined(__x86_64__)
extern const LevelKernels level_kernels_avx2;
extern const LevelKernels level_kernels_avx512;
#endif

}  // namespace crad
