// How a call is cut into blocks of threads: by grid, by tile of channels, by chunk of points. All
// choices are pure functions of the problem and of the device's numbers, so that
// tests/kernels/test_cuda_plans.py can run them for GPUs that are not there.
#pragma once

#include <algorithm>
#include <cstdint>

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
inline Tables tables_of(const Problem& problem) { return tables_of(problem.ndim, problem.mode); }

// How many derivatives a corner of each table holds in the backward pass: a compile-time constant
// of its kernels, so that there are few different ones.
struct Columns {
  int low, high;
};
inline Columns columns_of(const Problem& problem) {
  if (problem.coord_type == CoordType::float64) return {4, 4};
  if (problem.ndim <= 2) return {2, 0};
  return problem.ndim == tables_of(problem).low_axes ? Columns{4, 0} : Columns{4, 4};
}

// The bytes of a corner: its entry, its weight and its derivatives, so aligned that all threads of
// a warp read it 16 or 8 bytes at a time.
constexpr int64_t corner_alignment(int64_t bytes) { return (bytes + 7) / 8 % 2 == 0 ? 16 : 8; }
constexpr int64_t corner_bytes(int64_t entry, int64_t weight, int slopes) {
  const int64_t bytes = entry + (1 + slopes) * weight, alignment = corner_alignment(bytes);
  return (bytes + alignment - 1) / alignment * alignment;
}

constexpr int64_t kOnChipEntry = sizeof(int32_t), kInMemoryEntry = sizeof(int64_t);

// The bytes of a point's tables, with a flag for whether it is a place.
CRAD_INLINE int64_t located_bytes(const Tables& tables, int64_t corner) {
  return (tables.low + tables.high) * corner + 1;
}

enum class Family {
  on_chip,    // a block stages its share of the grid in shared memory, or sums its gradient there
  in_memory,  // grids are read, and their gradients added to atomically, where they lie
  planes,     // so are those that are not channels last; neighbouring threads take other points
  by_cell,    // as on_chip, for the gradients, by points sorted by cell
};

struct Plan {
  Family family;
  int vector;             // channels that a thread moves at once
  int64_t tile_channels;  // of a block
  int64_t tiles;          // of all channels
  int64_t chunk_points;   // of a block
  int64_t chunks;         // of the points of one grid
  int batch;              // points of a block that are located together
  int lanes;              // threads that share a point: neighbours, but not of planes
  int threads;            // of a block
  Tables tables;
  int64_t shared;  // bytes of a block

  int64_t blocks(const Problem& problem) const { return problem.grids * tiles * chunks; }
};

// How far apart the grids, points and channels of a result lie, in elements.
struct Rows {
  int64_t grid, point, channel;
};

// Where the row of a point of a grid begins.
CRAD_INLINE int64_t offset_of(const Problem& problem, const Rows& rows, int64_t grid,
                              int64_t point) {
  return grid * rows.grid + (point - grid * problem.points_per_grid) * rows.point;
}

// What a block works on: the numbers of its grid, tile and chunk, and half-open ranges.
struct Share {
  int64_t grid, tile, chunk;
  int64_t point_begin, point_end;
  int64_t channel_begin, channel_end;
};

// The cells of a grid by linear interpolation: between neighbours along each axis, or between one
// at the border and the outside; and one for all points outside.
CRAD_INLINE int64_t cells_of(const Problem& problem) {
  int64_t cells = 1;
  for (int axis = 0; axis < problem.ndim; ++axis) cells *= problem.size[axis] + 1;
  return cells + 1;
}

// The slopes of a point that are summed together, a power of two.
CRAD_INLINE constexpr int slopes_by_cell(int ndim) { return ndim <= 2 ? 2 : 4; }

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

constexpr int kWarp = 32;
constexpr int kSums = 8;  // that a warp of the backward pass takes together
// Blocks of a multiprocessor, at least: they hide each other's latencies. This is also what keeps
// registers from being spilt: asked for more, the compiler spills a few to have room for them.
constexpr int kBlocks = 2;
constexpr int64_t kAlignment = 16;  // of what lies in shared memory

CRAD_INLINE int64_t rounded_up(int64_t bytes) { return round_up(bytes, kAlignment); }

inline int64_t value_bytes(const Problem& problem) {
  switch (problem.value_type) {
    case ValueType::float64:
      return 8;
    case ValueType::float32:
      return 4;
    default:
      return 2;
  }
}
// Of the type that sums are taken in.
inline int64_t sum_bytes(const Problem& problem) {
  return problem.value_type == ValueType::float64 ? 8 : 4;
}

// Choices that somebody has made instead: CRAD_KERNELS_PLAN, for timings. 0: not made.
struct Forced {
  int64_t family = 0;   // 1 + Family
  int64_t vector = 0;   // 1, or as many channels as a thread moves at most
  int64_t tile = 0;     // channels of a block
  int64_t chunks = 0;   // of the points of one grid
  int64_t batch = 0;    // points of a block that are located together
  int64_t threads = 0;  // of a block
  int64_t groups = 0;   // of threads, in a block of the backward pass on the chip
  int64_t columns = 0;  // results of a block that sums partial results
};
inline int64_t chosen(int64_t forced, int64_t choice) { return forced > 0 ? forced : choice; }

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
// What a thread owns on the chip. The channels whose sums fit there are few: 64 entries of float,
// with their values, leave a multiprocessor 13 warps of 4 bytes, but 3 of 16. On sm_90, linear in
// 2-D, 16 bytes take 2.9 times fewer instructions (1090 a warp for 4 points of 128 channels, 4
// bytes 857 for 32) and 117 registers for 80, but have no other warp to wait with. Not yet timed on
// a GPU.
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
  return ceil_div(ceil_div(channels, ceil_div(channels, most)), kWarp) * kWarp;
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

// ---- the forward pass ----

// tile_channels is 0 where the grid does not fit.
inline Plan plan_forward_on_chip(const Problem& problem, const Device& device,
                                 const Forced& forced) {
  constexpr int kRegisters = 64;
  Plan plan{};
  plan.family = Family::on_chip;
  plan.vector = vector_of(problem, nullptr, kWideBytes, forced);
  plan.tables = tables_of(problem);
  plan.threads = static_cast<int>(chosen(forced.threads, device.threads));
  const int64_t room = shared_of_a_block(device), values = value_bytes(problem);
  const int64_t point =
      located_bytes(plan.tables, corner_bytes(kOnChipEntry, sum_bytes(problem), 0));
  plan.batch = static_cast<int>(
      chosen(forced.batch,
             batch_of(point, room / 4, std::min<int64_t>(plan.threads, problem.points_per_grid))));
  const int64_t beside = rounded_up(point * plan.batch) + kAlignment;
  const auto shared_for = [&](int64_t tile) {
    return rounded_up(problem.entries * tile * values) + beside;
  };
  plan.tile_channels = channels_on_chip(problem, values, room - beside);
  if (plan.tile_channels == 0) return plan;
  // As many blocks as run at once, by chunks of points so long as staging costs little beside
  // sampling, and then by tiles of channels.
  const int64_t at_once =
      blocks_at_once(device, shared_for(plan.tile_channels), plan.threads, kRegisters);
  int64_t most_chunks = std::max<int64_t>(1, problem.points_per_grid / (4 * problem.entries));
  if (problem.grids * most_chunks * ceil_div(problem.channels, plan.tile_channels) < at_once) {
    constexpr int64_t kLeast = 128;
    const int64_t even = ceil_div(problem.channels * problem.grids * most_chunks, at_once);
    const int64_t least = std::max(kLeast, ceil_div(even, kWarp) * kWarp);
    if (least < plan.tile_channels) plan.tile_channels = even_tile(problem.channels, least);
  }
  plan.tile_channels = chosen(forced.tile, plan.tile_channels);
  plan.lanes = lanes_of(ceil_div(plan.tile_channels, plan.vector));
  plan.shared = shared_for(plan.tile_channels);
  const int64_t others = problem.grids * ceil_div(problem.channels, plan.tile_channels);
  // An idle multiprocessor costs more than staging.
  if (others * most_chunks < device.multiprocessors)
    most_chunks = std::min(ceil_div(device.multiprocessors, others),
                           problem.points_per_grid / problem.entries);
  const int64_t chunks = std::min(std::max<int64_t>(1, at_once / others), most_chunks);
  return cut(problem, plan, chosen(forced.chunks, chunks));
}

// Of either pass, whose corners take so many bytes.
inline Plan plan_in_memory(const Problem& problem, const Device& device, const void* grad_output,
                           int64_t corner, const Forced& forced) {
  constexpr int64_t kMostChannels = 4096, kLeastChannels = 512;
  constexpr int64_t kVectors = 8;  // of a thread, about
  Plan plan{};
  plan.family = Family::in_memory;
  plan.vector = vector_of(problem, grad_output, kWideBytes, forced);
  plan.tables = tables_of(problem);
  plan.threads = static_cast<int>(chosen(forced.threads, device.threads));
  // Smaller blocks where they would leave multiprocessors idle: of fewer channels, then of fewer
  // points, then of fewer threads.
  const int64_t enough = 4 * device.multiprocessors;
  const auto blocks = [&](int64_t channels, int64_t points) {
    return problem.grids * ceil_div(problem.channels, channels) *
           ceil_div(problem.points_per_grid, points);
  };
  plan.tile_channels = problem.channels <= kMostChannels
                           ? problem.channels
                           : even_tile(problem.channels, kMostChannels);
  while (plan.tile_channels > kLeastChannels && blocks(plan.tile_channels, 1) < enough)
    plan.tile_channels = ceil_div(plan.tile_channels / 2, kWarp) * kWarp;
  plan.tile_channels = chosen(forced.tile, plan.tile_channels);
  plan.lanes = lanes_of(plan.tile_channels / plan.vector);
  const int64_t vectors = ceil_div(plan.tile_channels, plan.vector * plan.lanes);
  int64_t turns = std::max<int64_t>(1, kVectors / vectors);
  const auto points = [&] { return turns * plan.threads / plan.lanes; };
  while (turns > 1 && blocks(plan.tile_channels, points()) < enough) turns /= 2;
  while (!forced.threads && plan.threads > kWarp &&
         blocks(plan.tile_channels, points()) < device.multiprocessors)
    plan.threads /= 2;
  const int64_t point = located_bytes(plan.tables, corner), room = shared_of_a_block(device);
  plan.batch = static_cast<int>(chosen(
      forced.batch,
      batch_of(point, room, std::min({points(), int64_t{plan.threads}, problem.points_per_grid}))));
  // Whole turns of all threads, or no more threads than the points of a batch have.
  const int rows = plan.threads / plan.lanes;
  if (plan.batch >= rows)
    plan.batch -= plan.batch % rows;
  else if (!forced.threads)
    plan.threads = static_cast<int>(ceil_div(plan.batch * plan.lanes, kWarp)) * kWarp;
  plan.shared = point * plan.batch;
  return cut(problem, plan, chosen(forced.chunks, ceil_div(problem.points_per_grid, plan.batch)));
}

constexpr int kPlanes = 4;  // channels that a thread takes together, of planes

// Of either pass, whose corners take so many bytes: a thread takes a point. Where points are few,
// several threads share one.
inline Plan plan_planes(const Problem& problem, const Device& device, int64_t corner,
                        const Forced& forced) {
  Plan plan{};
  plan.family = Family::planes;
  plan.vector = 1;
  plan.tables = tables_of(problem);
  const int64_t point = located_bytes(plan.tables, corner);
  const int64_t most_threads = chosen(forced.threads, device.threads);
  const int64_t most = batch_of(point, shared_of_a_block(device), most_threads);
  const int64_t enough = 4 * device.multiprocessors;
  plan.tile_channels = problem.channels;
  const auto blocks = [&] {
    return problem.grids * ceil_div(problem.channels, plan.tile_channels) *
           ceil_div(problem.points_per_grid, plan.batch);
  };
  plan.batch = 1;
  while (2 * plan.batch <= most && plan.batch < problem.points_per_grid) plan.batch *= 2;
  // Fewer points, then fewer channels, where blocks would leave multiprocessors idle.
  while (plan.batch > kWarp && blocks() < enough) plan.batch /= 2;
  while (plan.tile_channels > kPlanes && blocks() < device.multiprocessors)
    plan.tile_channels = ceil_div(ceil_div(plan.tile_channels, 2), kPlanes) * kPlanes;
  plan.tile_channels = chosen(forced.tile, plan.tile_channels);
  plan.lanes = 1;
  while (2 * plan.lanes * plan.batch <= most_threads &&
         (plan.lanes * kPlanes < plan.tile_channels || plan.lanes * plan.batch < kWarp))
    plan.lanes *= 2;
  plan.threads = plan.lanes * plan.batch;
  plan.shared = point * plan.batch;
  return cut(problem, plan, chosen(forced.chunks, ceil_div(problem.points_per_grid, plan.batch)));
}

inline Plan plan_forward(const Problem& problem, const Device& device, const Forced& forced = {}) {
  const int64_t corner = corner_bytes(kInMemoryEntry, sum_bytes(problem), 0);
  if (problem.channel_stride != 1 || forced.family == 1 + static_cast<int>(Family::planes))
    return plan_planes(problem, device, corner, forced);
  const Plan memory = plan_in_memory(problem, device, nullptr, corner, forced);
  if (!is_dense(problem)) return memory;
  const Plan chip = plan_forward_on_chip(problem, device, forced);
  if (forced.family == 1 + static_cast<int>(Family::on_chip)) return chip;
  if (forced.family == 1 + static_cast<int>(Family::in_memory)) return memory;
  if (chip.tile_channels == 0) return memory;
  // Staging is for many points: with few of them, the blocks that share it are few.
  const int64_t chip_blocks = chip.blocks(problem);
  return chip_blocks < device.multiprocessors && chip_blocks < memory.blocks(problem) ? memory
                                                                                      : chip;
}

// ---- the backward pass ----

inline int64_t corners_of_a_point(const Problem& problem) {
  const Tables tables = tables_of(problem);
  return static_cast<int64_t>(tables.low) * tables.high;
}

// Chunks whose partial sums take at most half of the bytes of the gradient that they are sums of.
inline int64_t most_chunks_of(const Problem& problem) {
  return std::max<int64_t>(1, problem.points_per_grid * value_bytes(problem) /
                                  (2 * problem.entries * sum_bytes(problem)));
}

// Registers of a thread, about.
constexpr int kOnChipRegisters = 112;
inline int registers_by_cell(const Problem& problem, int vector) {
  return sum_bytes(problem) > 4 || (vector > 1 && problem.ndim > 2) ? 192 : 128;
}

// tile_channels is 0 where the grid does not fit. A thread owns channels, and a block has as many
// groups of such threads as there is room for their sums; each takes its own points.
inline Plan plan_backward_on_chip(const Problem& problem, const Device& device,
                                  const void* grad_output, bool want_values, bool want_coords,
                                  const Forced& forced) {
  constexpr int kParts = 4;  // of the shared memory, each of which is rounded up
  constexpr int64_t kFewPoints =
      32;  // located together, at least: all other memory is for channels
  const Columns columns = columns_of(problem);
  const int64_t sums = sum_bytes(problem), values = value_bytes(problem);
  Plan plan{};
  plan.family = Family::on_chip;
  plan.vector = vector_of(problem, grad_output, kWordBytes, forced);
  plan.tables = tables_of(problem);
  const int most_threads = static_cast<int>(chosen(forced.threads, device.threads));
  const auto warps_of = [&](int64_t tile) { return ceil_div(tile, kWarp * plan.vector); };
  // With the slopes of a point, a row for each warp that shares it.
  const auto point_bytes = [&](int64_t tile) {
    return located_bytes(plan.tables, corner_bytes(kOnChipEntry, sums, columns.low)) +
           (want_coords ? (columns.low + columns.high) * warps_of(tile) * sums : 0);
  };
  const int64_t room = shared_of_a_block(device) - kParts * kAlignment;
  const int64_t most_point = point_bytes(int64_t{most_threads} * plan.vector);
  const int64_t few = batch_of(most_point, room / 4, kFewPoints);
  const int64_t own = want_values ? sums : 0, staged = want_coords ? values : 0;
  const int64_t fitting = channels_on_chip(problem, own + staged, room - most_point * few);
  if (fitting == 0) return plan;
  int64_t tile = std::min<int64_t>(fitting, int64_t{most_threads} * plan.vector);
  const int64_t most_chunks = most_chunks_of(problem);
  const auto blocks = [&] {
    return problem.grids * most_chunks * ceil_div(problem.channels, tile);
  };
  const int64_t warp_channels = int64_t{kWarp} * plan.vector;
  while (tile > warp_channels && blocks() < device.multiprocessors)
    tile = std::max(warp_channels, ceil_div(tile / 2, kWarp) * kWarp);
  plan.tile_channels = tile = chosen(forced.tile, tile);
  const int64_t vectors = ceil_div(tile, plan.vector);
  plan.lanes = static_cast<int>(vectors > kWarp ? warps_of(tile) * kWarp : lanes_of(vectors));
  const int64_t a_group = problem.entries * tile * own,
                all_groups = problem.entries * tile * staged;
  const int64_t point = point_bytes(tile);
  const int64_t least_groups = std::max(1, kWarp / plan.lanes);
  int64_t groups = std::max<int64_t>(least_groups, most_threads / plan.lanes);
  while (groups > least_groups && groups * a_group + all_groups + point * few > room) groups /= 2;
  groups = chosen(forced.groups, groups);
  // No room for a whole warp of groups.
  plan.shared = groups * a_group + all_groups;
  if (plan.shared + point * few > room) return Plan{};
  plan.threads = static_cast<int>(groups * plan.lanes);
  // As many as a thread locates, or a group takes in one turn.
  const int64_t together = kSums / (columns.low + columns.high);
  const int64_t most = std::max(few, std::max<int64_t>(plan.threads, groups * together));
  plan.batch = static_cast<int>(chosen(
      forced.batch, batch_of(point, room - plan.shared, std::min(most, problem.points_per_grid))));
  plan.shared += point * plan.batch + kParts * kAlignment;
  const int64_t at_once = blocks_at_once(device, plan.shared, plan.threads, kOnChipRegisters);
  const int64_t others = problem.grids * ceil_div(problem.channels, tile);
  return cut(problem, plan, chosen(forced.chunks, std::min(at_once / others, most_chunks)));
}

// By cell: with so many channels a thread, and warps a block; tile_channels is 0 where there is no
// room for their sums and a point. A group is a warp, or a warp has several where channels are few.
inline Plan plan_backward_by_cell(const Problem& problem, const Device& device, int vector,
                                  int64_t warps, bool want_values, bool want_coords,
                                  const Forced& forced) {
  constexpr int kParts = 8;  // of the shared memory, each of which is rounded up
  constexpr int64_t kEntry = sizeof(int32_t), kCount = sizeof(uint16_t), kMostPoints = 1024;
  const int64_t cells = cells_of(problem), corners = corners_of_a_point(problem);
  const int64_t sums = sum_bytes(problem), values = value_bytes(problem);
  const int64_t slopes = slopes_by_cell(problem.ndim);
  Plan plan{};
  plan.family = Family::by_cell;
  plan.vector = vector;
  plan.tables = tables_of(problem);
  const int64_t warp_channels = int64_t{kWarp} * vector;
  const int64_t even = ceil_div(problem.channels, ceil_div(problem.channels, warp_channels));
  const int64_t tile = chosen(forced.tile, ceil_div(even, vector) * vector);
  plan.lanes = lanes_of(ceil_div(tile, vector));
  const int64_t groups = kWarp / plan.lanes;  // of a warp
  const int64_t point =                       // its taps, its slopes, and twice its cell
      4 * problem.ndim * sums + (want_coords ? slopes * sums : 0) + 2 * kEntry;
  const int64_t column = problem.entries * tile;
  const int64_t warp =
      groups * ((want_values ? column * sums : 0) + kSums / slopes * kEntry) + cells * kCount;
  const int64_t block =
      (want_coords ? column * values : 0) + cells * corners * kEntry + point + kParts * kAlignment;
  const int64_t room = std::min(device.block_bytes, device.shared_bytes - device.block_reserve);
  plan.shared = warps * warp + block;
  if (plan.shared + point > room || tile > warp_channels) return Plan{};
  plan.tile_channels = tile;
  plan.threads = static_cast<int>(warps * kWarp);
  // More points of a cell hardly make changes of the cell rarer.
  const int64_t most = std::min(
      {std::max<int64_t>(8 * cells, device.threads), kMostPoints, problem.points_per_grid});
  plan.batch = static_cast<int>(chosen(forced.batch, batch_of(point, room - plan.shared, most)));
  const int64_t at_once = blocks_at_once(device, plan.shared + point * plan.batch, plan.threads,
                                         registers_by_cell(problem, vector));
  const int64_t others = problem.grids * ceil_div(problem.channels, tile);
  int64_t chunks = at_once / others;
  // Twice as many as run at once, where these would leave a multiprocessor idle.
  if (chunks * others < device.multiprocessors) chunks = 2 * at_once / others;
  chunks = std::min({chunks, most_chunks_of(problem), problem.points_per_grid / (warps * groups)});
  plan = cut(problem, plan, chosen(forced.chunks, chunks));
  if (!forced.batch)
    plan.batch =
        static_cast<int>(ceil_div(plan.chunk_points, ceil_div(plan.chunk_points, plan.batch)));
  plan.shared += point * plan.batch;
  return plan;
}

// What a warp takes for one point of each of its groups, in instructions of sm_90 for float,
// counted in SASS; for 1 to 3 dimensions. By cell with one channel a thread, and with 4.
constexpr int kOnChipWork[] = {290, 190, 540};
constexpr int kByCellWork[2][3] = {{38, 65, 125}, {51, 87, 175}};
constexpr int kCellChangeWork[2][3] = {{39, 71, 138}, {63, 107, 204}};
constexpr int kSortingWork = 1500;  // cycles for a batch by cell, most of which are waits

inline double work_of(const Problem& problem, const Plan& plan) {
  const int d = problem.ndim - 1, wide = plan.vector > 1;
  if (plan.family == Family::on_chip) return kOnChipWork[d];
  const int groups = plan.threads / plan.lanes;
  const double points = plan.batch;
  const double changes = std::min(1.0, static_cast<double>(cells_of(problem) + groups) / points);
  double all_stay = 1;  // the chance that no group of a warp changes its cell
  for (int group = 0; group < kWarp / plan.lanes; ++group) all_stay *= 1 - changes;
  return kByCellWork[wide][d] + (1 - all_stay) * kCellChangeWork[wide][d];
}

// About the cycles that a backward pass takes, where points are spread evenly. A multiprocessor
// issues four instructions each, but a warp alone at most one every other.
inline double cycles_of(const Problem& problem, const Device& device, const Plan& plan) {
  const bool by_cell = plan.family == Family::by_cell;
  const int registers = by_cell ? registers_by_cell(problem, plan.vector) : kOnChipRegisters;
  const int64_t at_once = blocks_at_once(device, plan.shared, plan.threads, registers);
  const int64_t blocks = plan.blocks(problem);
  const int64_t together = ceil_div(std::min(blocks, at_once), device.multiprocessors);
  const double warps = static_cast<double>(together * plan.threads / kWarp);
  const int64_t batches = ceil_div(plan.chunk_points, plan.batch);
  const int64_t turns = ceil_div(plan.chunk_points, plan.threads / plan.lanes);
  const double sorting = by_cell ? batches * kSortingWork : 0;
  return ceil_div(blocks, at_once) *
         (turns * work_of(problem, plan) * std::max(2.0, warps / 4) + sorting);
}

// By cell, as wide and with as many warps as takes the fewest cycles.
inline Plan plan_backward_by_cell(const Problem& problem, const Device& device,
                                  const void* grad_output, bool want_values, bool want_coords,
                                  const Forced& forced) {
  constexpr int64_t kMostCells = 1 << 16, kSumsOfAThread = 16;  // bytes
  // Of a warp's groups, one or another changes its cell at nearly every point where they are more.
  constexpr int kMostGroups = 4;
  const int64_t row = problem.channels * value_bytes(problem);
  if (problem.mode != Mode::linear || problem.coord_type != CoordType::float32 ||
      problem.ndim > 3 || cells_of(problem) > kMostCells || row > UINT32_MAX)
    return Plan{};
  const int64_t bytes = kSumsOfAThread / sum_bytes(problem) * value_bytes(problem);
  const int wide = vector_of(problem, grad_output, bytes, forced);
  const int64_t most = chosen(forced.threads, device.threads) / kWarp;
  Plan best{};
  double fewest = 0;
  for (int vector = wide; vector > 0; vector = vector > 1 ? 1 : 0)
    for (int64_t warps = most; warps > 0; warps = forced.threads > 0 ? 0 : warps - 1) {
      const Plan plan =
          plan_backward_by_cell(problem, device, vector, warps, want_values, want_coords, forced);
      if (plan.tile_channels == 0) continue;
      if (forced.family == 0 && plan.lanes * kMostGroups < kWarp) continue;
      const double cycles = cycles_of(problem, device, plan);
      if (best.tile_channels > 0 && fewest <= cycles) continue;
      best = plan;
      fewest = cycles;
    }
  return best;
}

// Gradients are partial sums, (chunks, *gradient of values) of on_chip and by_cell and (tiles,
// *gradient of coords), to be summed afterwards; the gradient of values is one array, to be zeroed
// before, of in_memory.
inline Plan plan_backward(const Problem& problem, const Device& device, const void* grad_output,
                          bool want_values, bool want_coords, const Forced& forced = {}) {
  const auto is_forced = [&](Family family) {
    return forced.family == 1 + static_cast<int>(family);
  };
  const Plan chip =
      plan_backward_on_chip(problem, device, grad_output, want_values, want_coords, forced);
  if (is_forced(Family::on_chip)) return chip;
  if (is_forced(Family::by_cell) || (forced.family == 0 && chip.tile_channels > 0)) {
    const Plan cell =
        plan_backward_by_cell(problem, device, grad_output, want_values, want_coords, forced);
    if (is_forced(Family::by_cell)) return cell;
    const bool pays = cell.tile_channels > 0 &&
                      cycles_of(problem, device, cell) < cycles_of(problem, device, chip);
    return pays ? cell : chip;
  }
  return plan_in_memory(problem, device, grad_output,
                        corner_bytes(kInMemoryEntry, sum_bytes(problem), columns_of(problem).low),
                        forced);
}

inline Plan plan_backward_planes(const Problem& problem, const Device& device, bool want_coords,
                                 const Forced& forced = {}) {
  const int slopes = want_coords ? columns_of(problem).low : 0;
  return plan_planes(problem, device, corner_bytes(kInMemoryEntry, sum_bytes(problem), slopes),
                     forced);
}

// ---- the gradient of the values in order ----

// How the points of a large grid are sorted: see deterministic.h.
struct Order {
  int window;        // entries of a window along an axis of the low table: the taps, or 1
  int corners;       // of a window: as many colours are there
  int items;         // of a point in the list that is sorted
  int64_t windows;   // of one colour, along the axes of the low table
  int64_t keys;      // of one colour
  int64_t piece;     // items that a group of threads adds, at most
  int64_t together;  // points that are sorted together

  bool wide() const { return corners * keys > INT32_MAX; }  // keys, of 8 bytes and not 4
};

// The windows of one colour that have an entry of the grid.
CRAD_INLINE int64_t windows_along(int64_t size, int window) {
  return (size + window - 1 + window - 1) / window;
}

// Whether the corners of points are windows, and fewer items to sort are worth a launch a colour.
inline bool sorts_by_window(const Problem& problem, const Device& device) {
  constexpr int64_t kLaunch = 64 * 1024;  // bytes that a multiprocessor moves in its time
  constexpr int64_t kSorted = 104;        // bytes that an item moves in 4 passes, of 4 and 8 bytes
  bool windows = taps_follow_each_other(problem.mode, problem.padding);
  for (int axis = 0; axis < problem.ndim; ++axis) windows &= problem.size[axis] <= kExactSize;
  const Tables tables = tables_of(problem);
  const double fewer =
      static_cast<double>(problem.grids * problem.points_per_grid) * tables.high * (tables.low - 1);
  const int64_t of_an_item = kSorted + problem.channels * value_bytes(problem);
  const int64_t launches = 2 * (tables.low - 1) * kLaunch * device.multiprocessors;
  return windows && fewer * static_cast<double>(of_an_item) > static_cast<double>(launches);
}

// Of the items of all points: the plan of the kernels that add them.
inline Plan plan_in_order(const Problem& problem, const Device& device, const void* grad_output,
                          Order& order, const Forced& forced = {}) {
  // Items that are sorted together; each takes 16 bytes, or 24 with wide keys, beside the sort's
  // own. Their rests have at most kRests elements, or as many as those of one point.
  constexpr int64_t kMost = 1 << 22, kRests = 1 << 24, kPiece = 64;
  Plan plan{};
  plan.vector = vector_of(problem, grad_output, kWideBytes, forced);
  plan.tables = tables_of(problem);
  const bool by_window = sorts_by_window(problem, device);
  order.window = by_window ? tap_count(problem.mode) : 1;
  order.corners = by_window ? plan.tables.low : 1;
  order.items = plan.tables.low * plan.tables.high / order.corners;
  order.windows = 1;
  order.keys = problem.grids;
  for (int d = 0; d < problem.ndim; ++d) {
    const int64_t size = problem.size[problem.ndim - 1 - d];
    if (d < plan.tables.low_axes)
      order.windows *= windows_along(size, order.window);
    else
      order.keys *= size;
  }
  order.keys *= order.windows;

  plan.lanes = lanes_of(problem.channels / plan.vector);
  plan.threads = device.threads;
  const int64_t located =
      located_bytes(plan.tables, corner_bytes(kInMemoryEntry, sum_bytes(problem), 0));
  constexpr int64_t kItem = 2 * sizeof(int32_t);
  const int64_t room = shared_of_a_block(device) - kAlignment;
  const int64_t most = batch_of(located + kItem, room, device.threads);
  // Two blocks of a colour for every multiprocessor, but at least an item for every group.
  const int64_t points = problem.grids * problem.points_per_grid;
  const int64_t blocks = 2 * device.multiprocessors * order.corners;
  const int64_t least = std::max(points * order.items / blocks, int64_t{plan.threads} / plan.lanes);
  plan.batch = 1;
  while (2 * plan.batch <= most && plan.batch < least) plan.batch *= 2;
  plan.shared = rounded_up(located * plan.batch) + kItem * plan.batch;

  order.piece = std::min<int64_t>(plan.batch, kPiece);
  const int64_t rests = kRests / (order.corners * problem.channels) * order.piece;
  order.together = std::clamp<int64_t>(std::min(kMost, rests) / order.items, 1, points);
  if (forced.chunks > 0) order.together = ceil_div(points, forced.chunks);
  return plan;
}

// Of the kernel that lists the keys of points.
inline Plan plan_keys(const Problem& problem, const Device& device, const Order& order) {
  Plan plan{};
  plan.tables = tables_of(problem);
  const int64_t point = located_bytes(plan.tables, corner_bytes(kInMemoryEntry, sizeof(float), 0));
  plan.batch = batch_of(point, shared_of_a_block(device), device.threads);
  const int64_t items = static_cast<int64_t>(plan.batch) * order.items;
  plan.threads =
      static_cast<int>(ceil_div(std::min<int64_t>(device.threads, items), kWarp) * kWarp);
  plan.shared = point * plan.batch;
  return plan;
}

// ---- sums of partial results ----

// How many of `count` results, each the sum of `number` parts, a block takes: a power of two. The
// other threads share the parts of a result.
inline int columns_of_sums(const Device& device, int64_t number, int64_t count,
                           const Forced& forced = {}) {
  constexpr int64_t kFew = 4;  // parts, which one thread takes
  int64_t columns = number <= kFew ? device.threads : kWarp;
  while (columns > 1 && number > kFew && ceil_div(count, columns) < device.multiprocessors)
    columns /= 2;
  return static_cast<int>(chosen(forced.columns, columns));
}

}  // namespace crad
