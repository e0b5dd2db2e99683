// Which kernel computes a sample, and how it is cut into blocks: plan_forward(), below. On chip, if
// the grid fits there and there are as many points as entries; in planes, if values are not
// channels last; else in memory.
#pragma once

#include "shared_memory.h"

namespace crad {

constexpr int kSampleRegisters = 80;  // of a thread, see plan_backward.h

// tile_channels is 0 where the grid does not fit.
inline Plan plan_forward_on_chip(const Problem& problem, const Device& device,
                                 const Forced& forced) {
  Plan plan = plan_of(problem, Family::on_chip, vector_of(problem, nullptr, kWideBytes, forced));
  plan.threads = chosen(forced.threads, device.threads);
  const int64_t room = shared_of_a_block(device), values = value_bytes(problem);
  const int64_t point =
      located_bytes(plan.tables, corner_bytes(kOnChipEntry, bytes_of_sum(problem.value_type), 0));
  plan.batch =
      chosen(forced.batch,
             batch_of(point, room / 4, std::min<int64_t>(plan.threads, problem.points_per_grid)));
  const int64_t beside = rounded_up(point * plan.batch) + kAlignment;
  const auto shared_for = [&](int64_t tile) { return staged_bytes(problem, tile) + beside; };
  plan.tile_channels = channels_on_chip(problem, values, room - beside);
  if (plan.tile_channels == 0) return plan;
  // As many blocks as run at once, by chunks of points so long as staging costs little beside
  // sampling, and then by tiles of channels.
  const int64_t at_once =
      blocks_at_once(device, shared_for(plan.tile_channels), plan.threads, kSampleRegisters);
  int64_t most_chunks = std::max<int64_t>(1, problem.points_per_grid / (4 * problem.entries));
  if (problem.grids * most_chunks * ceil_div(problem.channels, plan.tile_channels) < at_once) {
    constexpr int64_t kLeast = 128;
    const int64_t even = ceil_div(problem.channels * problem.grids * most_chunks, at_once);
    const int64_t least = std::max(kLeast, round_up(even, kWarp));
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

// Of either pass; `slopes`: of a corner.
inline Plan plan_in_memory(const Problem& problem, const Device& device, const void* grad_output,
                           int slopes, const Forced& forced) {
  constexpr int64_t kMostChannels = 4096, kLeastChannels = 512;
  constexpr int64_t kVectors = 8;  // of a thread, about
  Plan plan =
      plan_of(problem, Family::in_memory, vector_of(problem, grad_output, kWideBytes, forced));
  plan.threads = chosen(forced.threads, device.threads);
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
    plan.tile_channels = round_up(plan.tile_channels / 2, kWarp);
  plan.tile_channels = chosen(forced.tile, plan.tile_channels);
  plan.lanes = lanes_of(plan.tile_channels / plan.vector);
  const int64_t vectors = ceil_div(plan.tile_channels, plan.vector * plan.lanes);
  int64_t turns = std::max<int64_t>(1, kVectors / vectors);
  const auto points = [&] { return turns * plan.threads / plan.lanes; };
  while (turns > 1 && blocks(plan.tile_channels, points()) < enough) turns /= 2;
  while (!forced.threads && plan.threads > kWarp &&
         blocks(plan.tile_channels, points()) < device.multiprocessors)
    plan.threads /= 2;
  const int64_t point = located_in_memory(problem, plan.tables, slopes);
  const int64_t room = shared_of_a_block(device);
  plan.batch = chosen(
      forced.batch,
      batch_of(point, room, std::min({points(), int64_t{plan.threads}, problem.points_per_grid})));
  // Whole turns of all threads, or no more threads than the points of a batch have.
  const int rows = plan.threads / plan.lanes;
  if (plan.batch >= rows)
    plan.batch -= plan.batch % rows;
  else if (!forced.threads)
    plan.threads = static_cast<int>(round_up(plan.batch * plan.lanes, kWarp));
  plan.shared = point * plan.batch;
  return cut(problem, plan, chosen(forced.chunks, ceil_div(problem.points_per_grid, plan.batch)));
}

constexpr int kPlanes = 4;  // channels that a thread takes together, of planes

// Of either pass; `slopes`: of a corner. A thread takes a point; where points are few, several
// threads share one.
inline Plan plan_planes(const Problem& problem, const Device& device, int slopes,
                        const Forced& forced) {
  Plan plan = plan_of(problem, Family::planes, 1);
  const int64_t point = located_in_memory(problem, plan.tables, slopes);
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
    plan.tile_channels = round_up(ceil_div(plan.tile_channels, 2), kPlanes);
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
  if (problem.channel_stride != 1 || forced.family == Family::planes)
    return plan_planes(problem, device, 0, forced);
  const Plan memory = plan_in_memory(problem, device, nullptr, 0, forced);
  if (!is_dense(problem)) return memory;
  const Plan chip = plan_forward_on_chip(problem, device, forced);
  if (forced.family == Family::on_chip) return chip;
  if (forced.family == Family::in_memory) return memory;
  if (chip.tile_channels == 0) return memory;
  // Staging is for many points: with few of them, the blocks that share it are few.
  const int64_t chip_blocks = chip.blocks(problem);
  return chip_blocks < device.multiprocessors && chip_blocks < memory.blocks(problem) ? memory
                                                                                      : chip;
}

}  // namespace crad
