// How a call is cut into ranges of points and channels. A plan depends on the call alone, never on
// the number of threads, so that the sums of the backward pass are the same for any of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/numbers.h"
#include "kernels.h"

namespace crad {

constexpr Bands kNoBands{-1, -1, 0, 0, 0, 1, false};

struct Plan {
  int64_t tile;    // channels of a range
  int64_t tiles;   // of all channels
  int64_t chunk;   // points of a range
  int64_t chunks;  // of the points of one grid; 1 with bands
  int64_t tiles_at_once;
  Bands bands;  // number 0: none

  Range range(int64_t item, int64_t tile_index, int64_t chunk_index, const Problem& problem) const {
    const int64_t first = item * problem.points_per_grid;
    const int64_t begin = chunk_index * chunk, channel = tile_index * tile;
    return {first + begin, first + std::min(begin + chunk, problem.points_per_grid), channel,
            std::min(channel + tile, problem.channels)};
  }
};

constexpr int64_t kCache = 128 * 1024;     // bytes, of those of a core's own
constexpr int64_t kNearCache = 64 * 1024;  // of those nearer to it
constexpr int64_t kNarrow = 64;            // channels of a tile, at least

// Bytes of partial sums and of copies, at most: a call takes little more beside its results.
constexpr int64_t kSpare = 16 * 1024 * 1024;

// As many channels as keep the tile of so many entries, at so many bytes an element, in a cache.
inline int64_t tile_of(const Problem& problem, int64_t entries, int64_t bytes,
                       int64_t cache = kCache) {
  const int64_t fitting = cache / (bytes * entries) / 16 * 16;
  return std::min(problem.channels, std::max(fitting, kNarrow));
}

// How many tiles of the backward pass are taken at once: each has its share of the gradients of
// coords, and one by one they add to what there is.
inline int64_t tiles_at_once(const Problem& problem, int64_t tile, bool want_coords) {
  const int64_t tiles = ceil_div(problem.channels, tile);
  const int64_t share = points_of(problem) * problem.ndim * bytes_of(problem.coord_type);
  return want_coords && tiles * share > kSpare / 4 ? 1 : tiles;
}

inline Plan plan_of(const Problem& problem, const Bands& bands, int64_t tile, int64_t chunk,
                    bool want_coords) {
  return {tile,
          ceil_div(problem.channels, tile),
          chunk,
          ceil_div(problem.points_per_grid, chunk),
          tiles_at_once(problem, tile, want_coords),
          bands};
}

// Whether there is too little to do to cut a call for more than one thread. What is cut may still
// be done by one: see parallel.h.
inline bool is_serial(const Problem& problem) {
  constexpr int64_t kSerial = 32 * 1024;  // elements
  return points_of(problem) * problem.channels < kSerial;
}

// Bytes that all ranges move: of every point its coordinates, its row of the output, and those of
// its corners, so many times.
inline int64_t moved_bytes(const Problem& problem, int64_t channels, int64_t times) {
  return points_of(problem) *
         (problem.ndim * bytes_of(problem.coord_type) +
          (1 + times * corners_of(problem)) * channels * bytes_of_sum(problem.value_type));
}

inline int64_t forward_bytes(const Problem& problem) {
  constexpr int64_t kLocated = 16;  // of a point: what it takes to locate it
  return moved_bytes(problem, problem.channels, 1) + kLocated * points_of(problem);
}

// A row is read, and one is read and written. Fewer channels take no less time.
inline int64_t backward_bytes(const Problem& problem) {
  constexpr int64_t kFewest = 16;
  return moved_bytes(problem, std::max(problem.channels, kFewest), 3);
}

constexpr int64_t kForwardBytes = 4;  // of an entry
constexpr int64_t kPointBytes = 12;   // of memory that a call may take beside its results

// Whether a grid is near enough when it is only read: to read rows in pieces costs more than it
// gains.
inline bool is_near(const Problem& problem) {
  constexpr int64_t kNear = 2 * 1024 * 1024;  // bytes
  return problem.entries * problem.channels * kForwardBytes <= kNear;
}

constexpr int64_t kBackwardBytes = 8;  // of an entry and of its gradient
constexpr int64_t kRanges = 32;        // keep machines with many cores busy

// The channels of a range of the backward pass: all, unless the grid is far too large for that.
inline int64_t backward_tile(const Problem& problem) {
  constexpr int64_t kNear = 512 * 1024;  // bytes
  if (problem.entries * problem.channels * kBackwardBytes <= kNear) return problem.channels;
  return tile_of(problem, problem.entries, kBackwardBytes, kNearCache);
}

// The entries of a part of a grid, with those beside it that its points read.
inline int64_t entries_of_a_part(const Problem& problem, const Bands& bands) {
  int64_t entries = problem.entries;
  const auto keep = [&](int axis, int shift) {
    if (axis < 0) return;
    const int64_t size = problem.size[axis];
    entries = entries / size * std::min(size, (int64_t{1} << shift) + kMaxTaps - 1);
  };
  keep(bands.axis, bands.shift);
  keep(bands.second, bands.second_shift);
  return entries;
}

// The bands of a grid that is larger than a core's cache; none for others. Points are taken band by
// band, so that what they read and add to stays in the cache; and points of every other band have
// no entry in common, so they can be taken in parallel, with no grid of their own. The seam is
// taken by itself.
inline Bands bands_of(const Problem& problem) {
  constexpr int64_t kFewBands = 4, kMostBands = 256, kMostParts = 4096, kPoints = 64;
  // A band is no narrower than the taps of a point.
  const int shift = tap_count(problem.mode) > 2 ? 2 : 1;
  static_assert(kMaxTaps <= 4, "or a shift of 2 is too little");
  Bands bands{-1, -1, shift, shift, 0, 1, false};
  const int64_t tile = std::min(problem.channels, kNarrow);
  if (is_serial(problem) || problem.entries * tile * kBackwardBytes <= kCache) return bands;
  const auto longest_but = [&](int other) {
    int longest = other == 0 ? 1 : 0;
    for (int axis = longest + 1; axis < problem.ndim; ++axis)
      if (axis != other && problem.size[axis] > problem.size[longest]) longest = axis;
    return longest;
  };
  // Cuts an axis into so many parts at most, which must be at least 1.
  const auto cut = [&](int axis, int& shift, int64_t most) {
    while ((problem.size[axis] - 1) >> shift >= most) ++shift;
    return ((problem.size[axis] - 1) >> shift) + 1;
  };
  const int64_t most = std::min(kMostBands, problem.points_per_grid / kPoints);
  if (most < kFewBands) return bands;
  bands.axis = longest_but(-1);
  const int64_t number = cut(bands.axis, bands.shift, most);
  if (number < kFewBands) return bands;
  bands.seam = problem.padding[bands.axis] == Padding::circular && tap_count(problem.mode) > 1;
  bands.number = number + bands.seam;
  const int64_t fitting = tile_of(problem, entries_of_a_part(problem, bands), kBackwardBytes);
  if (problem.ndim == 1 || fitting == problem.channels) return bands;
  bands.second = longest_but(bands.axis);
  bands.second_number = cut(bands.second, bands.second_shift, kMostParts / number);
  return bands;
}

// Those of the forward pass, where they have to gain more than it takes to sort the points: for
// grids of many channels, and for those that are larger than the last cache, too.
inline Bands forward_bands_of(const Problem& problem) {
  constexpr int64_t kManyChannels = 32;
  constexpr int64_t kLarge = 64 * 1024 * 1024;  // bytes
  const int64_t bytes = problem.entries * problem.channels * kForwardBytes;
  if (is_near(problem) || (problem.channels < kManyChannels && bytes < kLarge)) return kNoBands;
  return bands_of(problem);
}

// Of ranges that are bands. They all add to one array, so there is one chunk. A tile is as wide as
// a part of the grid allows: to locate points again for every tile, and to read their gradients in
// pieces, costs more than it gains.
inline Plan band_plan(const Problem& problem, const Bands& bands, bool want_coords) {
  const int64_t tile = problem.point_lanes
                           ? problem.channels
                           : tile_of(problem, entries_of_a_part(problem, bands), kBackwardBytes);
  return plan_of(problem, bands, tile, problem.points_per_grid, want_coords);
}

// Of a range whose points are lanes: enough to hide what it takes to begin one.
inline int64_t lane_points(const Problem& problem) {
  constexpr int64_t kMost = 8 * 1024, kElements = 128 * 1024;
  return std::max<int64_t>(kLine, std::min(kMost, kElements / problem.channels / kLine * kLine));
}

inline Plan plan_forward(const Problem& problem) {
  const Bands bands = problem.point_lanes ? kNoBands : forward_bands_of(problem);
  if (bands.number > 0) return band_plan(problem, bands, false);
  // Of a range: enough to hide the cost of scheduling it.
  constexpr int64_t kElements = 64 * 1024, kPoints = 1024;
  if (problem.point_lanes)
    return plan_of(problem, bands, problem.channels, lane_points(problem), false);
  const int64_t tile =
      is_near(problem) ? problem.channels : tile_of(problem, problem.entries, kForwardBytes);
  return plan_of(problem, bands, tile, std::max<int64_t>(1, std::min(kElements / tile, kPoints)),
                 false);
}

// Each chunk of points adds to a grid of its own; these are summed afterwards. There are never so
// many that the sum costs more than reading grad_output, or that they take much memory.
inline Plan plan_backward(const Problem& problem, bool want_values, bool want_coords) {
  if (problem.point_lanes && !want_values)
    return plan_of(problem, kNoBands, problem.channels, lane_points(problem), want_coords);
  const Bands bands = bands_of(problem);
  if (bands.number > 0) return band_plan(problem, bands, want_coords);
  constexpr int64_t kPoints = 64, kAlways = 1 << 20;
  const int64_t most = kSpare / bytes_of_sum(problem.value_type);  // elements of all grids
  const int64_t tile = problem.point_lanes ? problem.channels : backward_tile(problem);
  const int64_t wanted =
      ceil_div(kRanges, tiles_at_once(problem, tile, want_coords) * problem.grids);
  const int64_t points = problem.points_per_grid;
  const int64_t affordable =
      std::min(std::max(problem.grids * points * problem.channels, kAlways) / 2, most) /
      (problem.grids * problem.entries * problem.channels);
  const int64_t chunks =
      is_serial(problem)
          ? 1
          : std::max<int64_t>(1, std::min({wanted, affordable, ceil_div(points, kPoints)}));
  return plan_of(problem, bands, tile, ceil_div(points, chunks), want_coords);
}

// Whether the gradient of values is added to in the order of the points, wherever they lie, and not
// in bands: where points are the lanes of vectors, and a cache holds it.
inline bool adds_in_order(const Problem& problem) {
  constexpr int64_t kHeld = 3 * 1024 * 1024;  // bytes
  return problem.entries * problem.channels * kForwardBytes <= kHeld &&
         bands_of(problem).number > 0;
}

// Whether the entries of a channel follow each other along the last axis.
inline bool has_planes(const Problem& problem) { return problem.stride[problem.ndim - 1] == 1; }

// Whether points can be the lanes of vectors (lane_forward.h, lane_backward.h).
inline bool fits_point_lanes(const Problem& problem) {
  constexpr int64_t kMostEntries = 1 << 30;  // so that what is behind them is an int32, too
  int64_t extent = 1;                        // of a channel
  for (int axis = 0; axis < problem.ndim; ++axis) {
    if (problem.size[axis] > kExactSize) return false;
    extent += (problem.size[axis] - 1) * problem.stride[axis];
  }
  return problem.value_type != ValueType::float64 && problem.coord_type == CoordType::float32 &&
         problem.derivative == 0 && !problem.simplex &&
         problem.ndim <= (problem.mode == Mode::cubic ? 2 : 3) && extent <= kMostEntries;
}

// Whether there are so few points that to gather their entries from planes takes less than to make
// rows of all.
inline bool has_few_points(const Problem& problem) {
  constexpr int64_t kFew = 16;
  return has_planes(problem) && problem.points_per_grid * kFew <= problem.entries;
}

// Whether neighbouring points read neighbouring entries, by a few runs of them.
inline bool reads_near_by(const Problem& problem) {
  constexpr int64_t kRuns = 16, kRun = 256, kShare = 64;
  const int64_t points = problem.points_per_grid;
  int64_t near = 0;
  for (int64_t i = 0; i < kRuns; ++i) {
    const int64_t begin = std::max<int64_t>(0, points - kRun) / (kRuns - 1) * i;
    int64_t first[kMaxDim], last[kMaxDim];
    kernels().bounds(problem, {begin, std::min(begin + kRun, points), 0, 0}, first, last);
    int64_t entries = 1;
    for (int axis = 0; axis < problem.ndim; ++axis) entries *= last[axis] - first[axis] + 1;
    near += entries * kShare <= problem.entries;
  }
  return 2 * near > kRuns;
}

// Whether values are float32, or halves that are widened first, which must take neither longer than
// the sampling nor much memory.
inline bool has_floats(const Problem& problem, bool backward = false) {
  constexpr int64_t kOften = 4;
  if (problem.value_type == ValueType::float32) return true;
  const int64_t entries = problem.grids * problem.entries;
  // Backward, of values, their gradient, and that of the output.
  const int64_t widened = backward ? 2 * entries + points_of(problem) : entries;
  return problem.channels <= kMostPlanes && problem.entries <= kOften * problem.points_per_grid &&
         widened * problem.channels * kForwardBytes <= kSpare + kPointBytes * points_of(problem);
}

// Whether points are the lanes of vectors in the forward pass.
inline bool samples_point_lanes(const Problem& problem) {
  return has_floats(problem) && (problem.channels <= kMostPlanes || has_few_points(problem)) &&
         fits_point_lanes(problem) &&
         (forward_bands_of(problem).number == 0 || reads_near_by(problem));
}

// And so in the backward pass. (Of more channels, sums over them are taken in another order.)
inline bool differentiates_point_lanes(const Problem& problem) {
  return has_floats(problem, true) && problem.channels <= kMostPlanes && fits_point_lanes(problem);
}

// Whether the gradient of values that are channels first is added to where it belongs, and not
// made of rows: of few points, one thread's work, in the order in which rows are added to.
inline bool adds_to_planes(const Problem& problem) {
  const bool half =
      problem.value_type == ValueType::bfloat16 || problem.value_type == ValueType::float16;
  return !half && problem.channels > kFewChannels && is_serial(problem) && has_few_points(problem);
}

// The elements from an entry to the next in the copy of a grid that a call reads instead, or adds
// to, of which there are `copies`: each begins with a cache line there, as half of those of 216
// channels do not. No more than the channels: there is no copy, as the points are too few, or in
// bands, or the grids too large.
inline int64_t copied_row(const Problem& problem, const Plan& plan, int64_t copies) {
  constexpr int64_t kFewest = 16, kOften = 64;
  const int64_t sum = bytes_of_sum(problem.value_type);
  const int64_t row = round_up(problem.channels, kLine / sum);
  const bool pays =
      (problem.value_type == ValueType::float32 || problem.value_type == ValueType::float64) &&
      !problem.point_lanes && is_dense(problem) && plan.bands.number == 0 &&
      problem.channels >= kFewest && problem.entries * kOften <= problem.points_per_grid &&
      copies * problem.grids * problem.entries * row * sum <= kSpare;
  return pays ? row : problem.channels;
}

// Whether the result is larger than the caches, and so is written past them. (Where the grid is
// small, the forward pass alone would be a little faster without, but not with the backward pass.)
inline bool streams(const Problem& problem) {
  constexpr int64_t kLarge = 16 * 1024 * 1024;  // bytes
  return points_of(problem) * problem.channels * kForwardBytes >= kLarge;
}

}  // namespace crad
