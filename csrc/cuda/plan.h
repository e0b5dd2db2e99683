// How a call is cut into blocks of threads: by grid, by tile of channels, by chunk of points.
#pragma once

#include <algorithm>
#include <cstdint>

#include "corners.h"

namespace crad {

struct Plan {
  int64_t tile_channels;  // of a block
  int64_t tiles;          // of all channels
  int64_t chunk_points;   // of a block
  int64_t chunks;         // of the points of one grid
  int batch;              // points of a block that are located together
  int lanes;              // neighbouring threads that share a point
  int threads;            // of a block
  Tables tables;
  int64_t shared;  // bytes of a block

  int64_t blocks(const Problem& problem) const { return problem.grids * tiles * chunks; }
};

// What a block works on: the numbers of its grid, tile and chunk, and half-open ranges.
struct Share {
  int64_t grid, tile, chunk;
  int64_t point_begin, point_end;
  int64_t channel_begin, channel_end;
};

CRAD_DEVICE Share share_of(const Problem& problem, const Plan& plan, int64_t block) {
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

constexpr int64_t kAlignment = 16;  // of what lies in shared memory

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CRAD_INLINE int64_t rounded_up(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

inline int64_t shared_of_a_block(const Device& device) {
  return std::min(device.block_bytes, device.shared_bytes / kBlocks - device.block_reserve);
}

// Blocks of so many threads that all multiprocessors run at once, by shared memory, and by a bound
// on the threads that their registers are for.
inline int64_t blocks_at_once(const Device& device, int64_t shared, int threads,
                              int64_t most_threads) {
  const int64_t by_memory = device.shared_bytes / (shared + device.block_reserve);
  return device.multiprocessors * std::max<int64_t>(1, std::min(by_memory, most_threads / threads));
}

// How many points a block locates together: one a thread, or as many as have room for their tables.
template <class C>
int batch_of(const Tables& tables, int64_t room, int64_t most) {
  const int64_t fitting = room / Batch<C>::bytes(tables, 1);
  return static_cast<int>(std::max<int64_t>(1, std::min(fitting, most)));
}

// The channels of a grid that fit into shared memory, at so many bytes for each entry of a channel;
// 0 if there is no room for a warp's worth, or if there are fewer points than entries to share
// them. This is the rule that tells grids that are staged on the chip from those that stay in
// memory.
inline int64_t channels_on_chip(const Problem& problem, int64_t bytes, int64_t room) {
  constexpr int64_t kWarp = 32;
  if (problem.points_per_grid < problem.entries) return 0;
  const int64_t fitting = room / (bytes * problem.entries);
  if (fitting >= problem.channels) return problem.channels;
  const int64_t most = fitting / kWarp * kWarp;
  if (most == 0) return 0;
  const int64_t even = ceil_div(problem.channels, ceil_div(problem.channels, most));
  return ceil_div(even, kWarp) * kWarp;
}

// Neighbouring threads for a point with so many vectors of channels: a power of two, as warps
// exchange between them.
inline int lanes_of(int64_t vectors) {
  int lanes = 1;
  while (lanes < vectors && lanes < 32) lanes *= 2;
  return lanes;
}

inline Plan cut(const Problem& problem, Plan plan, int64_t chunks) {
  plan.tiles = ceil_div(problem.channels, plan.tile_channels);
  plan.chunk_points = ceil_div(problem.points_per_grid, std::max<int64_t>(1, chunks));
  plan.chunks = ceil_div(problem.points_per_grid, plan.chunk_points);
  return plan;
}

}  // namespace crad
