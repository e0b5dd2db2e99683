// The operators of the CPU backend: tensors in and out, on the LibTorch stable ABI.
#include <pthread.h>

#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/jitter.h"
#include "../operator/call.h"
#include "empty.h"
#include "kernels.h"
#include "layout.h"
#include "parallel.h"
#include "plan.h"
#include "sort.h"

namespace crad {
namespace {

// Calls f(grid, tile, chunk) for all tiles of a plan and so many chunks, in parallel if they move
// enough bytes; the chunks of a tile lie next to each other, so that a thread stays with one tile
// of the grid.
template <class F>
void for_each_range(const Problem& problem, const Plan& plan, int64_t chunks, int64_t bytes, F f) {
  const int64_t tiles = plan.tiles_at_once, ranges = problem.grids * tiles * chunks;
  for (int64_t first = 0; first < plan.tiles; first += tiles)
    parallel(ranges, bytes / plan.tiles * tiles, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        f(i / (tiles * chunks), first + i / chunks % tiles, i % chunks);
    });
}

// Sorts the points of a call by the part of the grid that they read, and calls f(grid, tile, range)
// for every band and tile, in parallel, but never for neighbouring bands at once.
template <class F>
void for_each_band(const Call& call, const Bands& bands, const Plan& plan, int64_t bytes, F f) {
  const Problem& problem = call.problem;
  const Tensor part = empty({call.points}, ScalarType::Int);
  const Tensor order = empty({call.points}, ScalarType::Long);
  int64_t* const numbers = static_cast<int64_t*>(order.data_ptr());
  const PartOrder sorted(problem, bands, static_cast<int32_t*>(part.data_ptr()), numbers,
                         [&](int64_t count, auto f) {
                           parallel(count, bytes, [&](int64_t b, int64_t e) {
                             for (int64_t i = b; i < e; ++i) f(i);
                           });
                         });
  for (int64_t odd = 0; odd < 2; ++odd)
    for_each_range(problem, plan, (bands.number + 1 - odd) / 2, bytes / 2,
                   [&](int64_t grid, int64_t tile, int64_t pair) {
                     const int64_t band = 2 * pair + odd;
                     Range range = plan.range(grid, tile, 0, problem);
                     range.point_begin = sorted.begin_of(grid, band);
                     range.point_end = sorted.begin_of(grid, band + 1);
                     range.order = numbers;
                     f(grid, tile, range);
                   });
}

// Samples to memory that is channels last.
void sample_to(const Output& output, const Call& call) {
  const Problem& problem = call.problem;
  if (const Bands bands = forward_bands_of(problem); bands.number > 0)
    return for_each_band(
        call, bands, band_plan(problem, bands, false), forward_bytes(problem),
        [&](int64_t, int64_t, const Range& range) { kernels().forward(problem, range, output); });
  const Plan plan = forward_plan(problem);
  for_each_range(problem, plan, plan.chunks, forward_bytes(problem),
                 [&](int64_t grid, int64_t tile, int64_t chunk) {
                   kernels().forward(problem, plan.range(grid, tile, chunk, problem), output);
                 });
}

// Samples to a tensor that is channels first, by way of rows that stay in a cache.
void sample_to_planes(const Tensor& planes, const Call& call, int64_t batch_axes) {
  const Problem& problem = call.problem;
  const ScalarType type = planes.scalar_type();
  if (forward_bands_of(problem).number > 0) {
    const Shape shape = call.output_shape();
    const Tensor rows = empty(shape, type);
    sample_to({rows.data_ptr(), problem.channels}, call);
    return transpose(To::planes, seen(shape, batch_axes), rows, planes);
  }
  const Plan plan = forward_plan(problem);
  const int64_t channels = problem.channels, points = problem.points_per_grid;
  const int64_t element = bytes_of(type);
  const auto sample_range = [&](int64_t grid, int64_t tile, int64_t chunk) {
    const Range range = plan.range(grid, tile, chunk, problem);
    const int64_t number = range.point_end - range.point_begin;
    const int64_t width = range.channel_end - range.channel_begin;
    const std::unique_ptr<char[]> rows(new char[number * width * element]);
    kernels().forward(problem, range,
                      {rows.get(), width, false, false, range.point_begin, range.channel_begin});
    const int64_t plane = grid * channels + range.channel_begin;
    char* const to = static_cast<char*>(planes.data_ptr());
    kernels().transpose(element, rows.get(), width, number, width,
                        to + (plane * points + range.point_begin - grid * points) * element,
                        points);
  };
  for_each_range(problem, plan, plan.chunks, forward_bytes(problem), sample_range);
}

// The number of batch axes of the grids.
int64_t batch_axes_of(const Tensor& values, const Tensor& coords) {
  return values.dim() - 1 - coords.size(coords.dim() - 1);
}

// The result lies in memory as `values` do: channels first if they are so, or else channels last.
Tensor sample(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
              const std::optional<Tensor>& jitter_std, int64_t options) {
  Call call(DeviceType::CPU, values, coords, seed, jitter_std, options);
  const Problem& problem = call.problem;
  RowStrides coords_strides;
  call.problem.coords_strides = strides_of(coords, coords_strides);
  const int64_t batch_axes = batch_axes_of(values, coords);
  const bool first = is_channels_first(values, batch_axes);
  read_values(call, batch_axes, Pass::forward, false);
  const bool planes = samples_planes(problem);
  if (planes && !has_planes(problem)) call.set_strided(channels_first(call.values, batch_axes));
  call.problem.planes = planes;
  copy_rows(call, copied_row(problem, forward_bands_of(problem), 1));

  const ScalarType type = values.scalar_type();
  const Shape shape = call.output_shape();
  const Tensor output = first
                            ? empty_strided(shape, channels_first_strides(shape, batch_axes), type)
                            : empty(shape, type);
  if (call.empty()) return output;
  if (first && !planes)
    sample_to_planes(output, call, batch_axes);
  else
    sample_to({output.data_ptr(), problem.channels, streams(problem), first}, call);
  return output;
}

// Where the ranges of a backward pass put their results: `parts` arrays that are summed at the end,
// or the result itself where one part of its type is all there is.
struct Parts {
  Tensor storage;
  int64_t number, stride, element;  // `element` in bytes, `stride` in elements
  bool summed;

  Parts(const Tensor& result, int64_t number, int64_t stride, ScalarType type)
      : storage(result),
        number(number),
        stride(stride),
        element(bytes_of(type)),
        summed(number > 1 || type != result.scalar_type()) {
    if (summed) storage = empty({number, stride}, type);
  }

  int64_t bytes() const { return number * stride * element; }

  char* part(int64_t index) const {
    return static_cast<char*>(storage.data_ptr()) + index * stride * element;
  }
};

void clear(const Parts& parts) {
  const int64_t elements = parts.number * parts.stride;
  parallel(elements, elements * parts.element, [&](int64_t begin, int64_t end) {
    std::memset(parts.part(0) + begin * parts.element, 0, (end - begin) * parts.element);
  });
}

// Zeroes a range's channels of every entry of a grid.
void clear(char* grid, const Problem& problem, const Range& range, int64_t element) {
  const int64_t bytes = (range.channel_end - range.channel_begin) * element;
  if (bytes == problem.channels * element) {
    std::memset(grid, 0, problem.entries * problem.row * element);
    return;
  }
  for (int64_t entry = 0; entry < problem.entries; ++entry)
    std::memset(grid + (entry * problem.row + range.channel_begin) * element, 0, bytes);
}

// Sets gradients of sum(grad_output * sample(values, coords)); null: not wanted. With both, the
// values are dense. They are always deterministic.
void differentiate(Call& call, const Tensor& grad_output, const RowStrides* grad_output_strides,
                   const Tensor* grad_values, const Tensor* grad_coords) {
  const Problem& problem = call.problem;
  const Bands bands = bands_of(problem);
  const Plan plan = bands.number > 0 ? band_plan(problem, bands, grad_coords)
                                     : backward_plan(problem, grad_coords);
  if (!grad_values)
    copy_rows(call, copied_row(problem, bands, 1));
  else if (plan.chunks > 1)
    copy_rows(call, copied_row(problem, bands, 1 + plan.chunks));
  const int64_t entries = problem.grids * problem.entries;
  std::optional<Parts> value_parts, coord_parts;
  if (grad_values)
    value_parts.emplace(*grad_values, plan.chunks, entries * problem.row,
                        accumulator_of(problem.value_type));
  if (grad_coords)
    coord_parts.emplace(*grad_coords, plan.tiles_at_once, grad_coords->numel(),
                        grad_coords->scalar_type());
  const auto grid_of = [&](int64_t grid, int64_t chunk) {
    return value_parts->part(chunk) + grid * problem.entries * problem.row * value_parts->element;
  };
  // Adds the gradients of a range.
  const auto add = [&](int64_t grid, int64_t tile, int64_t chunk, const Range& range) {
    Gradients gradients{grad_output.data_ptr(), grad_output_strides, nullptr, nullptr, false};
    if (grad_values) gradients.grad_values = grid_of(grid, chunk);
    if (grad_coords) {
      gradients.grad_coords = coord_parts->part(tile % plan.tiles_at_once);
      gradients.add_coords = tile >= plan.tiles_at_once;
    }
    kernels().backward(problem, range, gradients);
  };
  const int64_t bytes = backward_bytes(problem);
  // Here by all threads, where the ranges that follow would not do it in parallel.
  const bool cleared = bands.number > 0 || is_serial(problem);
  if (grad_values && cleared) clear(*value_parts);
  if (bands.number > 0) {
    for_each_band(call, bands, plan, bytes, [&](int64_t grid, int64_t tile, const Range& range) {
      add(grid, tile, 0, range);
    });
  } else {
    for_each_range(problem, plan, plan.chunks, bytes,
                   [&](int64_t grid, int64_t tile, int64_t chunk) {
                     const Range range = plan.range(grid, tile, chunk, problem);
                     if (grad_values && !cleared)
                       clear(grid_of(grid, chunk), problem, range, value_parts->element);
                     add(grid, tile, chunk, range);
                   });
  }
  if (grad_values && value_parts->summed) {
    const auto sum = [&](int64_t from, int64_t to, int64_t elements) {
      const int64_t element = bytes_of(grad_values->scalar_type());
      kernels().sum_values(problem.value_type, value_parts->part(0) + from * value_parts->element,
                           value_parts->number, value_parts->stride,
                           static_cast<char*>(grad_values->data_ptr()) + to * element, 0, elements);
    };
    if (problem.row == problem.channels)
      parallel(value_parts->stride, value_parts->bytes(),
               [&](int64_t begin, int64_t end) { sum(begin, begin, end - begin); });
    else
      parallel(entries, value_parts->bytes(), [&](int64_t begin, int64_t end) {
        for (int64_t entry = begin; entry < end; ++entry)
          sum(entry * problem.row, entry * problem.channels, problem.channels);
      });
  }
  if (grad_coords && coord_parts->summed)
    parallel(coord_parts->stride, coord_parts->bytes(), [&](int64_t begin, int64_t end) {
      kernels().sum_coords(problem.coord_type, coord_parts->part(0), coord_parts->number,
                           coord_parts->stride, grad_coords->data_ptr(), begin, end);
    });
}

// The gradients of sum(grad_output * sample(values, coords)) with respect to values, which lies in
// memory as they do, and coords; an empty tensor for the one that is not wanted.
std::tuple<Tensor, Tensor> sample_backward(const Tensor& grad_output, const Tensor& values,
                                           const Tensor& coords, const std::optional<Tensor>& seed,
                                           const std::optional<Tensor>& jitter_std, int64_t options,
                                           bool want_values, bool want_coords) {
  Call call(DeviceType::CPU, values, coords, seed, jitter_std, options);
  call.check(grad_output);
  RowStrides coords_strides;
  call.problem.coords_strides = strides_of(coords, coords_strides);
  const int64_t batch_axes = batch_axes_of(values, coords);
  Tensor grad_values = empty(gradient_shape(values, want_values), values.scalar_type());
  Tensor grad_coords = empty(gradient_shape(coords, want_coords), coords.scalar_type());
  if (call.empty()) {
    torch::stable::zero_(grad_values);
    torch::stable::zero_(grad_coords);
  } else {
    if (want_coords) read_values(call, batch_axes, Pass::backward, want_values);
    const Tensor rows = rows_of(call, grad_output);
    RowStrides rows_strides;
    const RowStrides* const strides = strides_of(rows, rows_strides);
    if (want_values && want_coords && is_dense(call.problem)) {
      differentiate(call, rows, strides, &grad_values, &grad_coords);
    } else {
      if (want_coords) differentiate(call, rows, strides, nullptr, &grad_coords);
      // Which reads no values.
      call.set_contiguous(values, call.problem.channels);
      if (want_values) differentiate(call, rows, strides, &grad_values, nullptr);
    }
  }
  if (!want_values || !is_channels_first(values, batch_axes)) return {grad_values, grad_coords};
  return {channels_first(grad_values, batch_axes), grad_coords};
}

// The generator and the normals of the jitter by themselves, as crad_kernels/reference.py
// defines them.
Tensor philox_words(const Tensor& counter_in, const Tensor& key_in) {
  const Tensor counter = dense(counter_in), key = dense(key_in);
  check_philox(DeviceType::CPU, counter, key);
  Tensor words = empty({counter.size(0), 4}, ScalarType::Long);
  const int64_t* c = static_cast<const int64_t*>(counter.data_ptr());
  const int64_t* k = static_cast<const int64_t*>(key.data_ptr());
  int64_t* to = static_cast<int64_t*>(words.data_ptr());
  for (int64_t i = 0; i < counter.size(0); ++i) {
    Words in;
    for (int w = 0; w < 4; ++w) in.word[w] = static_cast<uint32_t>(c[4 * i + w]);
    const Words out =
        philox(in, static_cast<uint32_t>(k[2 * i]) | static_cast<uint64_t>(k[2 * i + 1]) << 32);
    for (int w = 0; w < 4; ++w) to[4 * i + w] = out.word[w];
  }
  return words;
}

Tensor normals(const Tensor& seed, int64_t points, int64_t ndim) {
  check_normals(DeviceType::CPU, seed, points, ndim);
  Tensor result = empty({points, ndim}, ScalarType::Float);
  const uint64_t key = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  float* to = static_cast<float*>(result.data_ptr());
  constexpr int64_t kBytes = 1024;  // moved in the time of four normals
  parallel(points, points * ceil_div(ndim, 4) * kBytes, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t d = 0; d < ndim; d += 4) {
        float normal[4];
        jitter_normals(key, p, static_cast<uint32_t>(d / 4), normal);
        for (int64_t i = d; i < ndim && i < d + 4; ++i) to[p * ndim + i] = normal[i - d];
      }
  });
  return result;
}

// In the child of a fork. It has one thread, and no use for the blocks that its parent keeps: to
// write to them would copy them.
void begin_as_child() noexcept {
  is_forked = true;
  recycler.release();
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, begin_as_child);

}  // namespace
}  // namespace crad

// Returns the memory that is kept for results to the system.
extern "C" __attribute__((visibility("default"))) void crad_kernels_release_memory() {
  crad::recycler.release();
}

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CPU, library) {
  library.impl("sample.cpu", TORCH_BOX(&crad::sample));
  library.impl("sample_backward.cpu", TORCH_BOX(&crad::sample_backward));
  library.impl("philox.cpu", TORCH_BOX(&crad::philox_words));
  library.impl("normals.cpu", TORCH_BOX(&crad::normals));
}
