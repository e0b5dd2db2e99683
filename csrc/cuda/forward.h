// The sample. Threads that are neighbours share a point, each with a vector of its channels.
#pragma once

#include "corners.h"
#include "plan.h"

namespace crad {

// Sum over the corners of weight * rows[entry * pitch], V channels of it.
template <int V, class T, class C>
CRAD_DEVICE Pack<accumulator<T>, V> blend(const Batch<C>& batch, int point, const T* rows,
                                          int64_t pitch) {
  using A = accumulator<T>;
  using Corners = Gathered<V, C, T>;
  auto total = filled<A, V>(0);
  for (int h = 0; h < batch.tables.high; ++h) {
    const C high = batch.high_corner(h, point);
    for (int first = 0; first < batch.tables.low; first += Corners::kCorners) {
      const Corners some(batch, point, first, batch.tables.low, high, rows, pitch, true);
      CRAD_UNROLL
      for (int i = 0; i < Corners::kCorners; ++i)
        add_product(some.corner[i].weight * high.weight, some.value[i], total);
    }
  }
  return total;
}

// The block's points, from `rows`: the channels of its share, `pitch` apart from entry to entry.
template <int V, class X, class C, class T>
CRAD_DEVICE void sample_points(const Problem& problem, const Plan& plan, const Share& share,
                               Batch<C>& batch, const T* rows, int64_t pitch, T* output) {
  using A = accumulator<T>;
  const int lane = threadIdx.x % plan.lanes, row = threadIdx.x / plan.lanes;
  const int channels = static_cast<int>(share.channel_end - share.channel_begin);
  for (int64_t first = share.point_begin; first < share.point_end; first += batch.points) {
    const int count = static_cast<int>(
        share.point_end - first < batch.points ? share.point_end - first : batch.points);
    batch.template fill<X>(problem, first, count);
    for (int point = row; point < count; point += blockDim.x / plan.lanes)
      for (int c = lane * V; c < channels; c += plan.lanes * V) {
        T* const to = output + (first + point) * problem.channels + share.channel_begin + c;
        store_past_caches<V>(to, batch.place[point] ? blend<V>(batch, point, rows + c, pitch)
                                                    : filled<A, V>(static_cast<A>(NAN)));
      }
  }
}

// From a grid that stays in memory.
template <class T, class X, int V>
CRAD_KERNEL(kBlocks)
sample_in_memory(const Problem problem, const Plan plan, T* output) {
  using C = Corner<int64_t, accumulator<T>, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  Batch<C> batch(plan.tables, plan.batch, memory);
  const T* const grid =
      static_cast<const T*>(problem.values) + share.grid * problem.entries * problem.channels;
  sample_points<V, X>(problem, plan, share, batch, grid + share.channel_begin, problem.channels,
                      output);
}

// Copies the share's channels of every entry of its grid: of entry e to `to + e *
// plan.tile_channels`.
template <int V, class T>
CRAD_DEVICE void stage(const Problem& problem, const Plan& plan, const Share& share, T* to) {
  using W = typename Transfer<V * sizeof(T)>::type;
  const T* const grid = static_cast<const T*>(problem.values) +
                        share.grid * problem.entries * problem.channels + share.channel_begin;
  const int vectors = static_cast<int>(share.channel_end - share.channel_begin) / V;
  const int entries = static_cast<int>(problem.entries);
  for (int i = threadIdx.x; i < entries * vectors; i += blockDim.x) {
    const int entry = i / vectors, c = i % vectors * V;
    *reinterpret_cast<W*>(to + entry * plan.tile_channels + c) =
        __ldg(reinterpret_cast<const W*>(grid + entry * problem.channels + c));
  }
}

// From a grid whose share is staged in shared memory.
template <class T, class X, int V>
CRAD_KERNEL(kBlocks)
sample_on_chip(const Problem problem, const Plan plan, T* output) {
  using C = Corner<int32_t, accumulator<T>, 0>;
  CRAD_SHARED_MEMORY(memory);
  const Share share = share_of(problem, plan, blockIdx.x);
  T* const staged = reinterpret_cast<T*>(memory);
  Batch<C> batch(plan.tables, plan.batch,
                 memory + rounded_up(problem.entries * plan.tile_channels * sizeof(T)));
  stage<V>(problem, plan, share, staged);
  // The first batch waits for all threads before it is read, and so for the staged channels.
  sample_points<V, X>(problem, plan, share, batch, staged, plan.tile_channels, output);
}

// ---- plans ----

template <class T>
Plan plan_on_chip(const Problem& problem, const Device& device, int vector) {
  using C = Corner<int32_t, accumulator<T>, 0>;
  const Tables tables = tables_of(problem.ndim, problem.mode);
  const int64_t room = shared_of_a_block(device);
  const int batch =
      batch_of<C>(tables, room / 4, std::min<int64_t>(kThreads, problem.points_per_grid));
  const int64_t beside = rounded_up(Batch<C>::bytes(tables, batch)) + kAlignment;
  Plan plan{};
  plan.tile_channels = channels_on_chip(problem, sizeof(T), room - beside);
  if (plan.tile_channels == 0) return plan;
  // As many blocks as run at once, by chunks of points so long as staging costs little beside
  // sampling, and then by tiles of channels.
  const auto shared_for = [&](int64_t tile) {
    return rounded_up(problem.entries * tile * sizeof(T)) + beside;
  };
  constexpr int64_t kMostThreads = 1024;  // with 64 registers each
  const int64_t at_once =
      blocks_at_once(device, shared_for(plan.tile_channels), kThreads, kMostThreads);
  int64_t most_chunks = std::max<int64_t>(1, problem.points_per_grid / (4 * problem.entries));
  if (problem.grids * most_chunks * ceil_div(problem.channels, plan.tile_channels) < at_once) {
    constexpr int64_t kLeast = 128;
    const int64_t even = ceil_div(problem.channels * problem.grids * most_chunks, at_once);
    plan.tile_channels = std::min(plan.tile_channels, std::max(kLeast, ceil_div(even, 32) * 32));
  }
  plan.tables = tables;
  plan.batch = batch;
  plan.threads = kThreads;
  plan.lanes = lanes_of(ceil_div(plan.tile_channels, vector));
  plan.shared = shared_for(plan.tile_channels);
  const int64_t others = problem.grids * ceil_div(problem.channels, plan.tile_channels);
  // An idle multiprocessor costs more than staging.
  if (others * most_chunks < device.multiprocessors)
    most_chunks = std::min(ceil_div(device.multiprocessors, others),
                           problem.points_per_grid / problem.entries);
  return cut(problem, plan, std::min(std::max<int64_t>(1, at_once / others), most_chunks));
}

template <class C>
Plan plan_in_memory(const Problem& problem, const Device& device, int vector) {
  constexpr int64_t kMostChannels = 4096, kLeastChannels = 512;
  constexpr int64_t kVectors = 8;  // of a thread, about
  Plan plan{};
  plan.tables = tables_of(problem.ndim, problem.mode);
  plan.threads = kThreads;
  // Smaller blocks where they would leave multiprocessors idle.
  const int64_t enough = 4 * device.multiprocessors;
  const auto blocks = [&](int64_t channels, int64_t points) {
    return problem.grids * ceil_div(problem.channels, channels) *
           ceil_div(problem.points_per_grid, points);
  };
  plan.tile_channels = std::min(problem.channels, kMostChannels);
  while (plan.tile_channels > kLeastChannels && blocks(plan.tile_channels, 1) < enough)
    plan.tile_channels = ceil_div(plan.tile_channels / 2, 32) * 32;
  plan.lanes = lanes_of(plan.tile_channels / vector);
  const int64_t rows = kThreads / plan.lanes;
  const int64_t vectors = ceil_div(plan.tile_channels, vector * plan.lanes);
  int64_t turns = std::max<int64_t>(1, kVectors / vectors);
  while (turns > 1 && blocks(plan.tile_channels, turns * rows) < enough) turns /= 2;
  plan.batch = batch_of<C>(plan.tables, shared_of_a_block(device) / 4,
                           std::min<int64_t>(turns * rows, kThreads));
  if (plan.batch > rows) plan.batch -= static_cast<int>(plan.batch % rows);
  plan.shared = Batch<C>::bytes(plan.tables, plan.batch);
  return cut(problem, plan, ceil_div(problem.points_per_grid, plan.batch));
}

template <class T, class X, int V>
void launch_sample(const Problem& problem, Stream stream, void* output) {
  const Device device = current_device();
  Plan plan = plan_on_chip<T>(problem, device, V);
  auto* kernel = sample_on_chip<T, X, V>;
  if (plan.tile_channels == 0) {
    plan = plan_in_memory<Corner<int64_t, accumulator<T>, 0>>(problem, device, V);
    kernel = sample_in_memory<T, X, V>;
  }
  launch(kernel, plan.blocks(problem), plan.threads, plan.shared, stream, problem, plan,
         static_cast<T*>(output));
}

}  // namespace crad
