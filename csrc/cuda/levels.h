// The kernels for several levels of float32: grids of different sizes, sampled at the same points.
// Neighbouring threads share a point, and take its levels in turn. A thread keeps the taps of a
// point in a level in registers: there are at most 4 axes.
#pragma once

#include "corners.h"
#include "plan_levels.h"

namespace crad {

constexpr int kMostLevels = 32;

// The levels, which lie one behind the other. They are dense, have two entries or more along every
// axis, and no tap is moved by its padding; the mode is linear.
struct LevelTable {
  int number;
  int32_t size[kMostLevels][kMostLevelAxes];  // slowest axis first
  int64_t first[kMostLevels];                 // entry
};

template <int D>
struct LevelTaps {
  int32_t entry[D][2];   // counted from the first of the level; below 0 outside the grid
  float t[D], slope[D];  // of weights, see tap_weight()
  bool place;
};

template <int D>
CRAD_DEVICE LevelTaps<D> taps_of(const Problem& problem, const LevelTable& levels, int level,
                                 int64_t point) {
  LevelTaps<D> taps;
  taps.place = true;
  float normal[4];
  int32_t apart = 1;
  CRAD_UNROLL
  for (int d = 0; d < D; ++d) {
    const int32_t size = levels.size[level][D - 1 - d];
    const Component<float> at = component_of<float>(problem, size, point, d, normal);
    taps.place &= at.place;
    CRAD_UNROLL
    for (int tap = 0; tap < 2; ++tap) {
      const int32_t entry = entry_at(at.base + static_cast<float>(tap), size, 2);
      taps.entry[d][tap] = is_entry(entry, size) ? entry * apart : -1;
    }
    taps.t[d] = at.t;
    taps.slope[d] = at.slope;
    apart *= size;
  }
  return taps;
}

// Calls f(k, entry) for the corners of a point: bit d of k is the tap of its component d, and the
// entry is below 0 outside the grid.
template <int D, class F>
CRAD_DEVICE void for_corners(const LevelTaps<D>& taps, F f) {
  CRAD_UNROLL
  for (int k = 0; k < 1 << D; ++k) {
    int32_t entry = 0;
    bool inside = true;
    CRAD_UNROLL
    for (int d = 0; d < D; ++d) {
      const int32_t along = taps.entry[d][k >> d & 1];
      inside &= along >= 0;
      entry += along;
    }
    f(k, inside ? entry : -1);
  }
}

// The weight of a corner, or its derivative with respect to a component.
template <int D>
CRAD_DEVICE float corner_weight(const LevelTaps<D>& taps, int k, int component = -1) {
  float weight = 1;
  CRAD_UNROLL
  for (int d = 0; d < D; ++d)
    weight *= tap_weight(Mode::linear, d == component, k >> d & 1, taps.t[d], taps.slope[d]);
  return weight;
}

// The point of this thread, which may be behind the last one.
CRAD_DEVICE int64_t point_of_group(const Group& group) {
  return static_cast<int64_t>(blockIdx.x) * group.count + group.index;
}

// V channels at a time.
template <int D, int V>
CRAD_KERNEL(kBlocks)
sample_of_levels(const Problem problem, const LevelTable levels, int lanes, const float* values,
                 float* output) {
  const Group group(lanes);
  const int64_t point = point_of_group(group);
  if (point >= points_of(problem)) return;
  for (int level = group.lane; level < levels.number; level += lanes) {
    const LevelTaps<D> taps = taps_of<D>(problem, levels, level, point);
    const float* const rows = values + levels.first[level] * problem.channels;
    float* const to = output + (point * levels.number + level) * problem.channels;
    for (int64_t c = 0; c < problem.channels; c += V) {
      Pack<float, V> total = filled<float, V>(taps.place ? 0.f : NAN);
      if (taps.place)
        for_corners(taps, [&](int k, int32_t entry) {
          if (entry < 0) return;
          add_product(corner_weight(taps, k), load<V>(rows + entry * problem.channels + c), total);
        });
      store<V, kPastCaches>(to + c, total);
    }
  }
}

// The gradients. That of coords is summed over the levels; that of the values, zeroed before, is
// added to atomically. Null: not wanted. Of 4 axes it takes more registers than two blocks have.
template <int D, int V>
CRAD_KERNEL((D < 4 ? kBlocks : 1))
backward_of_levels(const Problem problem, const LevelTable levels, int lanes, const float* values,
                   const float* grad_output, float* grad_values, float* grad_coords) {
  const Group group(lanes);
  const int64_t point = point_of_group(group);
  const bool own = point < points_of(problem);
  float slope[D] = {};
  // All threads of a warp come to its end: they exchange sums.
  for (int level = group.lane; own && level < levels.number; level += lanes) {
    const LevelTaps<D> taps = taps_of<D>(problem, levels, level, point);
    CRAD_UNROLL
    for (int d = 0; d < D && !taps.place; ++d) slope[d] = NAN;
    if (!taps.place) continue;
    const int64_t first = levels.first[level] * problem.channels;
    const float* const grads = grad_output + (point * levels.number + level) * problem.channels;
    for (int64_t c = 0; c < problem.channels; c += V) {
      const Pack<float, V> grad = load<V>(grads + c);
      for_corners(taps, [&](int k, int32_t entry) {
        const int64_t at = first + entry * problem.channels + c;
        if (grad_coords) {
          // Outside lie zeros, which an infinite gradient makes NaN.
          const Pack<float, V> value = entry < 0 ? filled<float, V>(0) : load<V>(values + at);
          const float product = dot(grad, value);
          CRAD_UNROLL
          for (int d = 0; d < D; ++d)
            slope[d] = multiply_add(corner_weight(taps, k, d), product, slope[d]);
        }
        if (!grad_values || entry < 0) return;
        Pack<float, V> share = filled<float, V>(0);
        add_product(corner_weight(taps, k), grad, share);
        add_atomically<V>(grad_values + at, share);
      });
    }
  }
  if (!grad_coords) return;
  CRAD_UNROLL
  for (int d = 0; d < D; ++d)
    for (int bit = 1; bit < lanes; bit *= 2) slope[d] += __shfl_xor_sync(kWholeWarp, slope[d], bit);
  if (!own || group.lane > 0) return;
  CRAD_UNROLL
  for (int d = 0; d < D; ++d) grad_coords[point * D + d] = slope[d];
}

}  // namespace crad
