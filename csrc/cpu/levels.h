// What the loops over several grids are given, all sampled at the same points: see levels.cpp.
#pragma once

#include <cstdint>

#include "../core/levels.h"
#include "kernels.h"

namespace crad {

constexpr int kLevelBlock = 128;  // points, which are located in one level after the other

// Grids of float32, each a call of its own whose points and options are those of all. They are
// dense, have two entries or more along every axis, and no tap is moved by its padding; the mode is
// linear.
struct Levels {
  const Problem* level;
  int64_t number;
};

// All levels, in parts for threads. The gradient of coords is the sum of the parts' sums, whoever
// takes them.
struct LevelParts {
  const int64_t* level;  // their numbers, part by part
  const int64_t* end;    // of each part, in `level`
  int64_t number;

  int64_t begin(int64_t part) const { return part == 0 ? 0 : end[part - 1]; }
};

// Where gradients go. Those that are not wanted are null.
struct LevelGradients {
  float* const* values;  // of each level; it is added to
  float* coords;         // rows of points
  // Instead of `coords`: for each part and each block of the range, `ndim` columns with a float for
  // every point, which are the part's sums.
  float* sums;
};

// The rows of a sample hold the channels of all levels, one level after the other.
struct LevelKernels {
  // `streaming`: past the caches, for rows that are aligned for that.
  void (*sample)(const Levels&, const Range&, float* output, bool streaming);
  // Of the levels of some parts, from `first` to the one before `last`.
  void (*gradients)(const Levels&, const LevelParts&, int64_t first, int64_t last, const Range&,
                    const float* grad_output, const LevelGradients&);
  // Adds up the sums of all parts, of some blocks of the range.
  void (*add_parts)(const Levels&, int64_t parts, const Range&, int64_t first, int64_t last,
                    const float* sums, float* grad_coords);
};

extern const LevelKernels level_kernels_baseline;
#if defined(__x86_64__)
extern const LevelKernels level_kernels_avx2;
extern const LevelKernels level_kernels_avx512;
#endif

}  // namespace crad
