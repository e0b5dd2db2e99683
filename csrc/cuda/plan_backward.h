// Which kernel computes the gradients, how it is cut into blocks, and the sum of its partial sums.
// plan_backward(), below, chooses on_chip or by_cell for a grid that fits into shared memory and
// has at least as many points as entries, and in_memory for any other one. Then sample.cu has two
// more ways: sample_backward() takes planes.h for what is not channels last, and backward_by_rows()
// backward_in_order.h for a gradient of the values that is to be deterministic.
#pragma once

#include "plan_forward.h"

namespace crad {

// Chunks whose partial sums take at most half of the bytes of the gradient that they are sums of.
inline int64_t most_chunks_of(const Problem& problem) {
  return std::max<int64_t>(1, problem.points_per_grid * value_bytes(problem) /
                                  (2 * problem.entries * bytes_of_sum(problem.value_type)));
}

// Registers of a thread, about: those of most variants for float32, in the table of
// docs/performance.md.
constexpr int kOnChipRegisters = 112;
inline int registers_by_cell(const Problem& problem, int vector) {
  return bytes_of_sum(problem.value_type) > 4 || (vector > 1 && problem.ndim > 2) ? 192 : 128;
}

// tile_channels is 0 where the grid does not fit. A thread owns channels, and a block has as many
// groups of such threads as there is room for their sums; each takes its own points.
inline Plan plan_backward_on_chip(const Problem& problem, const Device& device,
                                  const void* grad_output, bool want_values, bool want_coords,
                                  const Forced& forced) {
  // Located together, at least: all other memory is for channels.
  constexpr int64_t kFewPoints = 32;
  const CornerSlopes slopes = corner_slopes_of(problem);
  Plan plan =
      plan_of(problem, Family::on_chip, vector_of(problem, grad_output, kWordBytes, forced));
  const int most_threads = chosen(forced.threads, device.threads);
  const int64_t warp_channels = int64_t{kWarp} * plan.vector;
  const auto lanes_for = [&](int64_t tile) {
    const int64_t vectors = ceil_div(tile, plan.vector);
    return static_cast<int>(vectors > kWarp ? round_up(vectors, kWarp) : lanes_of(vectors));
  };
  const auto bytes_for = [&](int64_t tile, int64_t groups, int64_t batch) {
    Plan part = plan;
    part.tile_channels = tile;
    part.lanes = lanes_for(tile);
    part.threads = static_cast<int>(groups * part.lanes);
    part.batch = static_cast<int>(batch);
    return memory_on_chip(problem, part, slopes, want_values, want_coords).bytes;
  };
  const auto point_bytes = [&](int64_t tile) {
    return bytes_for(tile, 1, 1) - bytes_for(tile, 1, 0);
  };
  const int64_t room = shared_of_a_block(device), nothing = bytes_for(0, 0, 0);
  const int64_t most_point = point_bytes(int64_t{most_threads} * plan.vector);
  const int64_t few = batch_of(most_point, (room - nothing) / 4, kFewPoints);
  const int64_t channel = (bytes_for(1, 1, 0) - nothing) / problem.entries;
  const int64_t fitting = channels_on_chip(problem, channel, room - nothing - most_point * few);
  if (fitting == 0) return plan;
  int64_t tile = std::min<int64_t>(fitting, int64_t{most_threads} * plan.vector);
  const int64_t most_chunks = most_chunks_of(problem);
  const auto blocks = [&] {
    return problem.grids * most_chunks * ceil_div(problem.channels, tile);
  };
  while (tile > warp_channels && blocks() < device.multiprocessors)
    tile = std::max(warp_channels, round_up(tile / 2, kWarp));
  plan.tile_channels = tile = chosen(forced.tile, tile);
  plan.lanes = lanes_for(tile);
  const int64_t least_groups = std::max(1, kWarp / plan.lanes);
  int64_t groups = std::max<int64_t>(least_groups, most_threads / plan.lanes);
  while (groups > least_groups && bytes_for(tile, groups, few) > room) groups /= 2;
  groups = chosen(forced.groups, groups);
  // No room for a whole warp of groups.
  if (bytes_for(tile, groups, few) > room) return Plan{};
  plan.threads = static_cast<int>(groups * plan.lanes);
  // As many as a thread locates, or a group takes in one turn.
  const int64_t together = kSums / (slopes.low + slopes.high);
  const int64_t most = std::max(few, std::max<int64_t>(plan.threads, groups * together));
  plan.batch = chosen(forced.batch, batch_of(point_bytes(tile), room - bytes_for(tile, groups, 0),
                                             std::min(most, problem.points_per_grid)));
  plan.shared = bytes_for(tile, groups, plan.batch);
  const int64_t at_once = blocks_at_once(device, plan.shared, plan.threads, kOnChipRegisters);
  const int64_t others = problem.grids * ceil_div(problem.channels, tile);
  return cut(problem, plan, chosen(forced.chunks, std::min(at_once / others, most_chunks)));
}

// By cell: with so many channels a thread, and warps a block; tile_channels is 0 where there is no
// room for their sums and a point. A group is a warp, or a warp has several where channels are few.
inline Plan plan_backward_by_cell(const Problem& problem, const Device& device, int vector,
                                  int64_t warps, bool want_values, bool want_coords,
                                  const Forced& forced) {
  constexpr int64_t kMostPoints = 1024;
  Plan plan = plan_of(problem, Family::by_cell, vector);
  const int64_t warp_channels = int64_t{kWarp} * vector;
  const int64_t even = ceil_div(problem.channels, ceil_div(problem.channels, warp_channels));
  const int64_t tile = chosen(forced.tile, round_up(even, vector));
  plan.lanes = lanes_of(ceil_div(tile, vector));
  plan.threads = static_cast<int>(warps * kWarp);
  plan.tile_channels = tile;
  const auto bytes_for = [&](int64_t batch) {
    plan.batch = static_cast<int>(batch);
    return memory_by_cell(problem, plan, want_values, want_coords).bytes;
  };
  const int64_t room = std::min(device.block_bytes, device.shared_bytes - device.block_reserve);
  if (bytes_for(1) > room || tile > warp_channels) return Plan{};
  // With more points the cell would hardly change less often.
  const int64_t most = std::min({std::max<int64_t>(8 * cells_of(problem), device.threads),
                                 kMostPoints, problem.points_per_grid});
  const int64_t point = bytes_for(1) - bytes_for(0);
  const int64_t batch = chosen(forced.batch, batch_of(point, room - bytes_for(0), most));
  const int64_t at_once =
      blocks_at_once(device, bytes_for(batch), plan.threads, registers_by_cell(problem, vector));
  const int64_t others = problem.grids * ceil_div(problem.channels, tile);
  int64_t chunks = at_once / others;
  // Twice as many as run at once, where these would leave a multiprocessor idle.
  if (chunks * others < device.multiprocessors) chunks = 2 * at_once / others;
  chunks = std::min(
      {chunks, most_chunks_of(problem), problem.points_per_grid / (plan.threads / plan.lanes)});
  plan = cut(problem, plan, chosen(forced.chunks, chunks));
  const int64_t batches = ceil_div(plan.chunk_points, batch);
  plan.shared = bytes_for(forced.batch > 0 ? batch : ceil_div(plan.chunk_points, batches));
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
  // With more groups in a warp, one of them changes its cell at nearly every point.
  constexpr int kMostGroups = 4;
  const int64_t row = problem.channels * value_bytes(problem);
  // The corners of a cell must be of different entries.
  bool distinct = true;
  for (int axis = 0; axis < problem.ndim; ++axis)
    distinct &= problem.padding[axis] != Padding::circular || problem.size[axis] > 1;
  if (problem.mode != Mode::linear || problem.simplex || problem.coord_type != CoordType::float32 ||
      problem.ndim > 3 || cells_of(problem) > kMostCells || row > UINT32_MAX || !distinct)
    return Plan{};
  const int64_t bytes = kSumsOfAThread / bytes_of_sum(problem.value_type) * value_bytes(problem);
  const int wide = vector_of(problem, grad_output, bytes, forced);
  const int64_t most = chosen(forced.threads, device.threads) / kWarp;
  Plan best{};
  double fewest = 0;
  for (int vector = wide; vector > 0; vector = vector > 1 ? 1 : 0)
    for (int64_t warps = most; warps > 0; warps = forced.threads > 0 ? 0 : warps - 1) {
      const Plan plan =
          plan_backward_by_cell(problem, device, vector, warps, want_values, want_coords, forced);
      if (plan.tile_channels == 0) continue;
      if (!forced.family && plan.lanes * kMostGroups < kWarp) continue;
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
  const Plan chip =
      plan_backward_on_chip(problem, device, grad_output, want_values, want_coords, forced);
  if (forced.family == Family::on_chip) return chip;
  if (forced.family == Family::by_cell || (!forced.family && chip.tile_channels > 0)) {
    const Plan cell =
        plan_backward_by_cell(problem, device, grad_output, want_values, want_coords, forced);
    if (forced.family == Family::by_cell) return cell;
    const bool pays = cell.tile_channels > 0 &&
                      cycles_of(problem, device, cell) < cycles_of(problem, device, chip);
    return pays ? cell : chip;
  }
  // A large grid.
  return plan_in_memory(problem, device, grad_output, corner_slopes_of(problem).low, forced);
}

inline Plan plan_backward_planes(const Problem& problem, const Device& device, bool want_coords,
                                 const Forced& forced = {}) {
  return plan_planes(problem, device, want_coords ? corner_slopes_of(problem).low : 0, forced);
}

// How many of `count` results, each the sum of `number` parts, a block takes: a power of two. The
// other threads share the parts of a result.
inline int columns_of_sums(const Device& device, int64_t number, int64_t count,
                           const Forced& forced = {}) {
  constexpr int64_t kFew = 4;  // parts, which one thread takes
  int columns = number <= kFew ? device.threads : kWarp;
  while (columns > 1 && number > kFew && ceil_div(count, columns) < device.multiprocessors)
    columns /= 2;
  return chosen(forced.columns, columns);
}

}  // namespace crad
