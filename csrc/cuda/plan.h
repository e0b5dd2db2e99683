// What a plan is: how a call is cut into blocks of threads, by grid, by tile of channels, by chunk
// of points. All choices (plan_forward.h, plan_backward.h, plan_in_order.h) are pure functions of
// the problem and of the device's numbers, so that tests/kernels/test_cuda_plans.py can run them
// for GPUs that are not there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "../core/numbers.h"
#include "../core/problem.h"

namespace crad {

struct Device {
  int multiprocessors;
  int64_t shared_bytes;   // of a multiprocessor
  int64_t block_reserve;  // shared memory that a block takes beside its own
  int64_t block_bytes;    // shared memory of a block, at most
  int threads;            // of a block, at most
};

// The corners of a point are the products of two short tables, one of its first components and one
// of the others: 8 axes of 4 taps have 65,536 corners, but tables of 256 each.
struct Tables {
  int low_axes;   // components of the low table; the others are those of the high one
  int low, high;  // corners
};

inline Tables tables_of(int ndim, Mode mode) {
  const int taps = tap_count(mode);
  // All corners in one table where there are at most 16.
  const int together = taps > 2 ? 2 : 4;
  Tables tables{ndim, 1, 1};
  if (ndim > together) tables.low_axes = ndim / 2 > together ? ndim / 2 : together;
  for (int d = 0; d < ndim; ++d) (d < tables.low_axes ? tables.low : tables.high) *= taps;
  return tables;
}
inline Tables tables_of(const Problem& problem) {
  if (problem.simplex) return {problem.ndim, corners_of(problem), 1};  // no products
  return tables_of(problem.ndim, problem.mode);
}

// How many derivatives a corner of each table holds in the backward pass: a compile-time constant
// of its kernels, so that there are few different ones.
struct CornerSlopes {
  int low, high;
};
inline CornerSlopes corner_slopes_of(const Problem& problem) {
  if (problem.simplex && problem.ndim > 4) return {kMaxDim, 0};
  if (problem.coord_type == CoordType::float64) return {4, 4};
  if (problem.ndim <= 2) return {2, 0};
  return problem.ndim == tables_of(problem).low_axes ? CornerSlopes{4, 0} : CornerSlopes{4, 4};
}

// The bytes of a corner: its entry, its weight and its derivatives, so aligned that all threads of
// a warp read it 16 or 8 bytes at a time.
CRAD_INLINE constexpr int64_t corner_alignment(int64_t bytes) {
  return (bytes + 7) / 8 % 2 == 0 ? 16 : 8;
}
CRAD_INLINE constexpr int64_t corner_bytes(int64_t entry, int64_t weight, int slopes) {
  const int64_t bytes = entry + (1 + slopes) * weight, alignment = corner_alignment(bytes);
  return (bytes + alignment - 1) / alignment * alignment;
}

constexpr int64_t kOnChipEntry = sizeof(int32_t), kInMemoryEntry = sizeof(int64_t);

// The bytes of a point's tables, with a flag for whether it is a place.
CRAD_INLINE int64_t located_bytes(const Tables& tables, int64_t corner) {
  return (tables.low + tables.high) * corner + 1;
}
// The same, of corners that have so many slopes and lie where grids are read from memory.
CRAD_INLINE int64_t located_in_memory(const Problem& problem, const Tables& tables, int slopes) {
  const int64_t weight = bytes_of_sum(problem.value_type);
  return located_bytes(tables, corner_bytes(kInMemoryEntry, weight, slopes));
}

enum class Family {
  on_chip,    // a block stages its share of the grid in shared memory, or sums its gradient there
  in_memory,  // grids are read, and their gradients added to atomically, where they lie
  planes,     // as in_memory, for values that are not channels last; neighbours take other points
  by_cell,    // as on_chip, for gradients: points are sorted by cell
};

struct Plan {
  Family family;
  int vector;             // channels that a thread moves at once
  int64_t tile_channels;  // of a block
  int64_t tiles;          // of all channels
  int64_t chunk_points;   // of a block
  int64_t chunks;         // of the points of one grid
  int batch;              // points of a block that are located together
  int lanes;              // threads that share a point: neighbours, except in planes
  int threads;            // of a block
  Tables tables;
  int64_t shared;  // bytes of a block

  int64_t blocks(const Problem& problem) const { return problem.grids * tiles * chunks; }
};

// A plan that is not cut yet.
inline Plan plan_of(const Problem& problem, Family family, int vector) {
  Plan plan{};
  plan.family = family;
  plan.vector = vector;
  plan.tables = tables_of(problem);
  return plan;
}

// How far apart the grids, points and channels of a sample or its gradient lie, in elements.
struct PointStrides {
  int64_t grid, point, channel;
};

// Where the row of a point of a grid begins.
CRAD_INLINE int64_t offset_of(const Problem& problem, const PointStrides& strides, int64_t grid,
                              int64_t point) {
  return grid * strides.grid + (point - grid * problem.points_per_grid) * strides.point;
}

// What a block works on: the numbers of its grid, tile and chunk, and half-open ranges.
struct Share {
  int64_t grid, tile, chunk;
  int64_t point_begin, point_end;
  int64_t channel_begin, channel_end;
};

CRAD_INLINE int channels_of(const Share& share) {
  return static_cast<int>(share.channel_end - share.channel_begin);
}

// The points of a batch, `most` at most, that begins with the first.
CRAD_INLINE int points_from(const Share& share, int64_t first, int most) {
  const int64_t left = share.point_end - first;
  return static_cast<int>(left < most ? left : most);
}

CRAD_INLINE Share share_of(const Problem& problem, const Plan& plan, int64_t block) {
  Share share;
  share.grid = block / (plan.tiles * plan.chunks);
  share.tile = block / plan.chunks % plan.tiles;
  share.chunk = block % plan.chunks;
  const int64_t first = share.grid * problem.points_per_grid;
  const int64_t begin = share.chunk * plan.chunk_points, end = begin + plan.chunk_points;
  share.point_begin = first + begin;
  share.point_end = first + (end < problem.points_per_grid ? end : problem.points_per_grid);
  share.channel_begin = share.tile * plan.tile_channels;
  const int64_t channel_end = share.channel_begin + plan.tile_channels;
  share.channel_end = channel_end < problem.channels ? channel_end : problem.channels;
  return share;
}

// The cells of a grid by linear interpolation: between neighbours along each axis, or between one
// at the border and the outside; and one for all points outside.
CRAD_INLINE int64_t cells_of(const Problem& problem) {
  int64_t cells = 1;
  for (int axis = 0; axis < problem.ndim; ++axis) cells *= problem.size[axis] + 1;
  return cells + 1;
}

// By cell: the slopes of a point that are summed together, a power of two; and the numbers of its
// taps along an axis, two weights and two slopes.
CRAD_INLINE constexpr int slopes_by_cell(int ndim) { return ndim <= 2 ? 2 : 4; }
constexpr int64_t kNumbersOfTaps = 4;

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xFFFFFFFF;  // a mask of its threads
constexpr int kSums = 8;                     // that a warp of the backward pass takes together
// Blocks of a multiprocessor, at least: they hide each other's latencies. This is also what keeps
// registers from being spilt: asked for more, the compiler spills a few to have room for them.
constexpr int kBlocks = 2;
constexpr int64_t kAlignment = 16;  // of what lies in shared memory

CRAD_INLINE int64_t rounded_up(int64_t bytes) { return round_up(bytes, kAlignment); }

CRAD_INLINE int64_t value_bytes(const Problem& problem) {
  return problem.value_type == ValueType::float64   ? 8
         : problem.value_type == ValueType::float32 ? 4
                                                    : 2;
}

// Choices that CRAD_KERNELS_PLAN makes instead, for timings. 0: not made.
struct Forced {
  std::optional<Family> family;
  int64_t vector = 0;   // 1, or as many channels as a thread moves at most
  int64_t tile = 0;     // channels of a block
  int64_t chunks = 0;   // of the points of one grid
  int64_t batch = 0;    // points of a block that are located together
  int64_t threads = 0;  // of a block
  int64_t groups = 0;   // of threads, in a block of the backward pass on the chip
  int64_t columns = 0;  // results of a block that sums partial results
};
template <class T>
T chosen(int64_t forced, T choice) {
  return forced > 0 ? static_cast<T>(forced) : choice;
}

// The channels of so many bytes; 1 where entries are not aligned to that.
inline int vector_of(const Problem& problem, const void* grad_output, int64_t bytes,
                     const Forced& forced = {}) {
  const auto is_aligned = [&](const void* memory) {
    return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
  };
  const int64_t vector = bytes / value_bytes(problem);
  int64_t apart = problem.channels | problem.grid_stride;
  for (int axis = 0; axis < problem.ndim; ++axis) apart |= problem.stride[axis];
  return vector > 1 && forced.vector != 1 && apart % vector == 0 && is_aligned(problem.values) &&
                 is_aligned(grad_output)
             ? static_cast<int>(vector)
             : 1;
}
constexpr int64_t kWideBytes = 16;
// What a thread owns on the chip. 16 bytes would take a third of the instructions, but shared
// memory has room for the sums and values of few such warps: too few to hide latency. Counted in
// docs/performance.md, and not yet timed on a GPU.
constexpr int64_t kWordBytes = 4;

inline int64_t shared_of_a_block(const Device& device) {
  return std::min(device.block_bytes, device.shared_bytes / kBlocks - device.block_reserve);
}

// Blocks of so many threads, with so many registers each, that all multiprocessors run at once.
inline int64_t blocks_at_once(const Device& device, int64_t shared, int threads, int registers) {
  constexpr int64_t kRegisters = 1 << 16;  // of a multiprocessor
  const int64_t by_memory = device.shared_bytes / (shared + device.block_reserve);
  const int64_t by_registers = kRegisters / (registers * threads);
  return device.multiprocessors * std::max<int64_t>(1, std::min(by_memory, by_registers));
}

// How many points a block locates together: as many as have room for their tables.
inline int batch_of(int64_t point_bytes, int64_t room, int64_t most) {
  return static_cast<int>(std::clamp<int64_t>(room / point_bytes, 1, most));
}

// As many channels of `most` as leave all tiles about as large, in whole warps.
inline int64_t even_tile(int64_t channels, int64_t most) {
  return round_up(ceil_div(channels, ceil_div(channels, most)), kWarp);
}

// The channels of a grid that fit into shared memory, at so many bytes for each entry of a channel;
// 0 if there is no room for a warp's worth, or if there are fewer points than entries to share
// them.
inline int64_t channels_on_chip(const Problem& problem, int64_t bytes, int64_t room) {
  if (problem.points_per_grid < problem.entries) return 0;
  const int64_t fitting = room / (bytes * problem.entries);
  if (fitting >= problem.channels) return problem.channels;
  const int64_t most = fitting / kWarp * kWarp;
  return most > 0 ? even_tile(problem.channels, most) : 0;
}

// Neighbouring threads for a point with so many vectors of channels: a power of two, as warps
// exchange between them.
inline int lanes_of(int64_t vectors) {
  int lanes = 1;
  while (lanes < vectors && lanes < kWarp) lanes *= 2;
  return lanes;
}

inline Plan cut(const Problem& problem, Plan plan, int64_t chunks) {
  plan.tiles = ceil_div(problem.channels, plan.tile_channels);
  plan.chunk_points = ceil_div(problem.points_per_grid, std::max<int64_t>(1, chunks));
  plan.chunks = ceil_div(problem.points_per_grid, plan.chunk_points);
  return plan;
}

}  // namespace crad
