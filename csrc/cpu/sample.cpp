// The operators sample, sample_backward and normals, and the way to them around the dispatcher.
//
// The way of `coords` from here to the inner loop:
//   operator/call.h   checks tensors; kernels are given a Problem (core/problem.h)
//   layout.h          has tensors read where they lie, or copies them
//   plan.h, sort.h    cut the call into ranges of points and channels, for parallel.h
//   isa/select.cpp    finds the kernels of this processor, isa/table.h the loops for the dtypes
//   many_channels.h   (or few_channels.h, tap_rows.h) loops over batches of 32 points
//   corners.h         has coordinates located (locate.h; core/jitter.h, axis.h): taps, then corners
//   simd.h            loads, weighs, sums and stores vectors of values
// Where the lanes of vectors are points, lane_forward.h or lane_backward.h, lane_corners.h and
// lanes.h stand for the last three, but locate.h fetches what is jittered or not contiguous;
// strips.h cuts the backward pass.
#include <pthread.h>

#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/jitter.h"
#include "../operator/call.h"
#include "direct.h"
#include "empty.h"
#include "kernels.h"
#include "layout.h"
#include "parallel.h"
#include "plan.h"
#include "sort.h"
#include "strips.h"

namespace crad {
namespace {

// Calls f(grid, tile, chunk, range) for all ranges of a plan, in parallel if they move enough
// bytes. The chunks of a tile follow each other, so that a thread stays with one tile of the grid.
// With bands, points are sorted by the part of the grid that they read, a range is a band (of chunk
// 0), and neighbouring bands are never taken at once, nor any with the seam.
template <class F>
void for_each_range(const Call& call, const Plan& plan, int64_t bytes, F f) {
  const Problem& problem = call.problem;
  const auto in_parallel = [&](int64_t chunks, int64_t moved, auto take) {
    const int64_t tiles = plan.tiles_at_once;
    for (int64_t first = 0; first < plan.tiles; first += tiles)
      parallel(problem.grids * tiles * chunks, moved / plan.tiles * tiles,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i)
                   take(i / (tiles * chunks), first + i / chunks % tiles, i % chunks);
               });
  };
  const int64_t bands = plan.bands.number;
  if (bands == 0)
    return in_parallel(plan.chunks, bytes, [&](int64_t grid, int64_t tile, int64_t chunk) {
      f(grid, tile, chunk, plan.range(grid, tile, chunk, problem));
    });
  const SortedPoints sorted(call, plan.bands, bytes);
  const auto take = [&](int64_t number, int64_t first, int64_t apart, int64_t moved) {
    in_parallel(number, moved, [&](int64_t grid, int64_t tile, int64_t i) {
      f(grid, tile, 0, sorted.band(grid, first + i * apart, plan.range(grid, tile, 0, problem)));
    });
  };
  const int64_t runs = bands - plan.bands.seam;
  for (int64_t odd = 0; odd < 2; ++odd) take((runs + 1 - odd) / 2, odd, 2, bytes / 2);
  if (plan.bands.seam) take(1, runs, 1, bytes / runs);
}

// ---- forward ----

// Samples to memory that is channels last.
void sample_to(const Output& output, const Call& call, const Plan& plan) {
  for_each_range(call, plan, forward_bytes(call.problem),
                 [&](int64_t, int64_t, int64_t, const Range& range) {
                   kernels().forward(call.problem, range, output);
                 });
}

// Samples to a tensor that is channels first, by way of rows that stay in a cache.
void sample_to_planes(const Tensor& planes, const Call& call, const Plan& plan) {
  const Problem& problem = call.problem;
  const ScalarType type = planes.scalar_type();
  if (plan.bands.number > 0) {
    const Tensor rows = empty(call.output_shape(), type);
    sample_to({rows.data_ptr(), problem.channels}, call, plan);
    return transpose(To::planes, rows, planes, call.batch_axes);
  }
  const int64_t points = problem.points_per_grid, element = bytes_of(type);
  for_each_range(
      call, plan, forward_bytes(problem), [&](int64_t grid, int64_t, int64_t, const Range& range) {
        const int64_t number = range.point_end - range.point_begin;
        const int64_t width = range.channel_end - range.channel_begin;
        const std::unique_ptr<char[]> rows(new char[number * width * element]);
        kernels().forward(
            problem, range,
            {rows.get(), width, false, false, range.point_begin, range.channel_begin});
        const int64_t plane = grid * problem.channels + range.channel_begin;
        char* const to = static_cast<char*>(planes.data_ptr());
        kernels().transpose(element, rows.get(), width, number, width,
                            to + ((plane - grid) * points + range.point_begin) * element, points);
      });
}

// Whether memory tells channels first from channels last: not that of one channel, nor of one
// point.
bool has_order(const Problem& problem) {
  return problem.channels > 1 && problem.points_per_grid > 1;
}

// The result lies in memory with its channels first, or else last.
Tensor result_of(Call& call, bool first) {
  const Problem& problem = call.problem;
  const ScalarType type = call.values.scalar_type();
  RowStrides coords_strides;
  call.problem.coords_strides = strides_of(call.coords, coords_strides);
  const int64_t axes_before = first ? call.batch_axes : call.coords.dim() - 1;
  const Tensor output = empty(call.output_shape(), type, axes_before);
  if (call.empty()) return output;
  const bool planes = first && has_order(problem);
  read_values(call, Pass::forward, false);
  call.problem.point_lanes = samples_point_lanes(problem);
  if (problem.point_lanes && problem.value_type != ValueType::float32)
    call.set_strided(torch::stable::to(call.values, ScalarType::Float));
  const Plan plan = plan_forward(problem);
  copy_rows(call, copied_row(problem, plan, 1));
  if (planes && !problem.point_lanes)
    sample_to_planes(output, call, plan);
  else
    sample_to({output.data_ptr(), problem.channels, streams(problem), planes}, call, plan);
  return output;
}

// The result lies in memory as `values` do: channels first if they are so, or else channels last.
Tensor sample(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
              const std::optional<Tensor>& jitter_std, int64_t options) {
  Call call(DeviceType::CPU, values, coords, seed, jitter_std, options);
  return result_of(call, is_channels_first(values, call.batch_axes));
}

// With channels first in the shapes of `input` and of the result, which lies in memory as
// crad_kernels/_layout.py says.
Tensor grid_sample(const Tensor& input, const Tensor& coords, const std::optional<Tensor>& seed,
                   const std::optional<Tensor>& jitter_std, int64_t options) {
  const int64_t last = input.dim() - 1;
  const Tensor values = moved(input, 1, last);
  Call call(DeviceType::CPU, values, coords, seed, jitter_std, options);
  const bool ordered = !call.empty() && has_order(call.problem);
  const bool first = !ordered || is_channels_first(values, call.batch_axes);
  const Tensor output = moved(result_of(call, first), last, 1);
  if (first || (values.is_contiguous() && !input.is_contiguous())) return output;
  return torch::stable::contiguous(output);
}

// ---- backward ----

// Zeroes a dense tensor, and returns where it lies.
template <class A>
A* clear(const Tensor& tensor) {
  char* const to = static_cast<char*>(tensor.data_ptr());
  const int64_t bytes = tensor.numel() * bytes_of(tensor.scalar_type());
  parallel(bytes, bytes,
           [&](int64_t begin, int64_t end) { std::memset(to + begin, 0, end - begin); });
  return reinterpret_cast<A*>(to);
}

// Partial sums of a gradient: `parts` arrays that are summed in the end, or the gradient itself
// where one part of its type is all there is.
struct PartialSums {
  const Tensor& gradient;
  Tensor storage;
  int64_t parts, stride, element;  // `element` in bytes, `stride` in elements
  bool apart;

  PartialSums(const Tensor& gradient, int64_t parts, int64_t stride, ScalarType type)
      : gradient(gradient),
        storage(gradient),
        parts(parts),
        stride(stride),
        element(bytes_of(type)),
        apart(parts > 1 || type != gradient.scalar_type()) {
    if (apart) storage = empty({parts, stride}, type);
  }

  char* at(int64_t index) const { return static_cast<char*>(storage.data_ptr()) + index * element; }

  // Sums the parts, whose rows of `width` elements lie `row` elements apart.
  void sum(int64_t row, int64_t width) const {
    if (!apart) return;
    if (row == width) row = width = 1;  // one long row
    const ValueType type = value_type_of(gradient);
    char* const to = static_cast<char*>(gradient.data_ptr());
    const int64_t to_row = width * bytes_of(gradient.scalar_type());
    parallel(stride / row, parts * stride * element, [&](int64_t begin, int64_t end) {
      const int64_t together = row == 1 ? end - begin : 1;
      for (int64_t i = begin; i < end; i += together)
        kernels().sum(type, at(i * row), parts, stride, to + i * to_row, together * width);
    });
  }
};

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
// values are dense. They are always deterministic. `from` has grad_output, here and below.
void differentiate(Call& call, const Gradients& from, const Tensor* grad_values,
                   const Tensor* grad_coords) {
  const Problem& problem = call.problem;
  const Plan plan = plan_backward(problem, grad_values, grad_coords);
  if (!grad_values || plan.chunks > 1)
    copy_rows(call, copied_row(problem, plan, grad_values ? 1 + plan.chunks : 1));
  std::optional<PartialSums> values, coords;
  if (grad_values)
    values.emplace(*grad_values, plan.chunks, problem.grids * problem.entries * problem.row,
                   accumulator_of(problem.value_type));
  if (grad_coords)
    coords.emplace(*grad_coords, plan.tiles_at_once, grad_coords->numel(),
                   grad_coords->scalar_type());
  const int64_t bytes = backward_bytes(problem);
  // Here by all threads, where the ranges that follow would not do it in parallel.
  const bool cleared = plan.bands.number > 0 || is_serial(problem);
  if (grad_values && cleared) clear<char>(values->storage);
  for_each_range(call, plan, bytes,
                 [&](int64_t grid, int64_t tile, int64_t chunk, const Range& range) {
                   Gradients gradients = from;
                   if (grad_values) {
                     char* const to =
                         values->at(chunk * values->stride + grid * problem.entries * problem.row);
                     if (!cleared) clear(to, problem, range, values->element);
                     gradients.grad_values = to;
                   }
                   if (grad_coords) {
                     gradients.grad_coords = coords->at(tile % plan.tiles_at_once * coords->stride);
                     gradients.add_coords = tile >= plan.tiles_at_once;
                   }
                   kernels().backward(problem, range, gradients);
                 });
  if (grad_values) values->sum(problem.row, problem.channels);
  if (grad_coords) coords->sum(1, 1);
}

// Sets that of values, and that of coords where `from` has it, and returns true, if strips can.
bool differentiate_strips(const Call& call, const Gradients& from, const Tensor& grad_values) {
  const Problem& problem = call.problem;
  const Strips strips(problem);
  if (strips.of_grid > 1 && strips.rounds.empty()) return false;
  float* const to = clear<float>(grad_values);
  const auto take = [&](const Range& range) {
    const int64_t grid = range.point_begin / problem.points_per_grid;
    Gradients gradients = from;
    gradients.grad_values = to + grid * problem.entries * problem.channels;
    kernels().backward(problem, range, gradients);
  };
  const int64_t bytes = backward_bytes(problem);
  if (strips.of_grid == 1) {
    const int64_t points = problem.points_per_grid;
    parallel(problem.grids, bytes, [&](int64_t begin, int64_t end) {
      for (int64_t grid = begin; grid < end; ++grid)
        take({grid * points, (grid + 1) * points, 0, problem.channels});
    });
  }
  for (const std::vector<Range>& round : strips.rounds) {
    const int64_t number = static_cast<int64_t>(round.size());
    parallel(number, bytes / (problem.grids * strips.of_grid) * number,
             [&](int64_t begin, int64_t end) {
               for (int64_t i = begin; i < end; ++i) take(round[i]);
             });
  }
  return true;
}

// Sets the same, wherever points lie in grids that stay in a cache. A thread takes all points of a
// grid, and adds to some of its rows: any number of threads adds in the order of the points.
void differentiate_rows(const Call& call, const Gradients& from, const Tensor& grad_values) {
  const Problem& problem = call.problem;
  const int64_t rows = problem.size[0], points = problem.points_per_grid;
  float* const to = clear<float>(grad_values);
  parallel(problem.grids * rows, backward_bytes(problem), [&](int64_t begin, int64_t end) {
    for (int64_t grid = begin / rows; grid * rows < end; ++grid) {
      const int64_t first_row = std::max(begin - grid * rows, int64_t{0});
      const int64_t end_row = std::min(end - grid * rows, rows);
      const bool whole = first_row == 0 && end_row == rows;
      const Range all{grid * points, (grid + 1) * points, 0, problem.channels};
      kernels().backward(problem, all,
                         {from.grad_output, from.grad_output_strides,
                          to + grid * problem.entries * problem.channels,
                          whole ? from.grad_coords : nullptr, false, first_row, end_row});
      if (whole || !from.grad_coords) continue;
      // Those of a share of the points.
      Range share = all;
      share.point_begin += points * first_row / rows;
      share.point_end = all.point_begin + points * end_row / rows;
      kernels().backward(problem, share, from);
    }
  });
}

// Sets the gradients of a call whose points are the lanes of vectors. That of values lies as they
// do where `alike`, or else it is contiguous, and then one gradient is taken after the other.
void differentiate_lanes(Call& call, Gradients from, const Tensor* grad_values,
                         const Tensor* grad_coords, bool alike) {
  if (!alike && grad_coords) {
    differentiate(call, from, nullptr, grad_coords);
    grad_coords = nullptr;
  }
  if (!grad_values && !grad_coords) return;
  if (!alike) call.set_contiguous(call.values, call.problem.channels);  // none is read
  if (grad_values) {
    if (grad_coords) from.grad_coords = grad_coords->data_ptr();
    if (differentiate_strips(call, from, *grad_values)) return;
    if (adds_in_order(call.problem)) return differentiate_rows(call, from, *grad_values);
  }
  differentiate(call, from, grad_values, grad_coords);
}

// Sets the gradient of values, channels first, where it belongs.
void differentiate_planes(Call& call, Gradients from, const Tensor& grad_values) {
  const Problem& problem = call.problem;
  const int64_t points = problem.points_per_grid;
  call.set_strided(grad_values);  // no value is read
  char* const to = clear<char>(grad_values);
  for (int64_t grid = 0; grid < problem.grids; ++grid) {
    from.grad_values = to + grid * problem.grid_stride * bytes_of(grad_values.scalar_type());
    kernels().backward(problem, {grid * points, (grid + 1) * points, 0, problem.channels}, from);
  }
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
  const bool first = is_channels_first(values, call.batch_axes);
  call.set_strided(values);
  Problem& problem = call.problem;
  problem.point_lanes = differentiates_point_lanes(problem);
  if (problem.point_lanes && problem.value_type != ValueType::float32 && !call.empty()) {
    const auto to = [](const Tensor& tensor, ScalarType type) {
      return torch::stable::to(tensor, type);
    };
    const auto [of_values, of_coords] =
        sample_backward(to(grad_output, ScalarType::Float), to(values, ScalarType::Float), coords,
                        seed, jitter_std, options, want_values, want_coords);
    return {to(of_values, values.scalar_type()), of_coords};
  }
  const bool planes = first && want_values && !problem.point_lanes && adds_to_planes(problem);
  const int64_t axes_before =
      first && want_values && (planes || problem.point_lanes) ? call.batch_axes : values.dim() - 1;
  Tensor grad_values = empty(gradient_shape(values, want_values), values.scalar_type(),
                             want_values ? axes_before : 0);
  Tensor grad_coords = empty(gradient_shape(coords, want_coords), coords.scalar_type());
  const Tensor* const to_values = want_values ? &grad_values : nullptr;
  const Tensor* const to_coords = want_coords ? &grad_coords : nullptr;
  if (call.empty()) return {torch::stable::zero_(grad_values), torch::stable::zero_(grad_coords)};
  RowStrides strides;
  if (problem.point_lanes) {
    differentiate_lanes(call, {grad_output.data_ptr(), strides_of(grad_output, strides)}, to_values,
                        to_coords, first || values.is_contiguous());
    return {grad_values, grad_coords};
  }
  call.set_contiguous(values, problem.channels);
  if (want_coords) read_values(call, Pass::backward, want_values);
  const Tensor rows = gradient_by_rows(call, grad_output);
  const Gradients from{rows.data_ptr(), strides_of(rows, strides)};
  if (want_values && want_coords && !planes && is_dense(problem)) {
    differentiate(call, from, to_values, to_coords);
  } else {
    if (want_coords) differentiate(call, from, nullptr, to_coords);
    if (planes) {
      differentiate_planes(call, from, grad_values);
      return {grad_values, grad_coords};
    }
    // Which reads no values.
    call.set_contiguous(values, problem.channels);
    if (want_values) differentiate(call, from, to_values, nullptr);
  }
  if (!want_values || !first) return {grad_values, grad_coords};
  return {channels_first(grad_values, call.batch_axes), grad_coords};
}

// With channels first in the shapes of `grad_output`, `input` and its gradient.
std::tuple<Tensor, Tensor> grid_sample_backward(const Tensor& grad_output, const Tensor& input,
                                                const Tensor& coords,
                                                const std::optional<Tensor>& seed,
                                                const std::optional<Tensor>& jitter_std,
                                                int64_t options, bool want_values,
                                                bool want_coords) {
  const int64_t last = input.dim() - 1;
  auto [grad_values, grad_coords] =
      sample_backward(moved(grad_output, 1, last), moved(input, 1, last), coords, seed, jitter_std,
                      options, want_values, want_coords);
  return {want_values ? moved(grad_values, last, 1) : grad_values, grad_coords};
}

// ---- the jitter by itself ----

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

// ---- from Python, around the dispatcher ----

// Calls an operator with arguments of Python.
template <class Result, class... Arguments>
PyObject* call(Result (*operation)(Arguments...), PyObject* const* arguments) {
  const auto next = [&] { return *arguments++; };  // in their order, within braces
  const std::tuple<std::decay_t<Arguments>...> given{
      from_python<std::decay_t<Arguments>>(next())...};
  const auto run = [&] {
    const Unlocked unlocked;
    return std::apply(operation, given);
  };
  return to_python(run());
}

// That as a function of Python.
template <auto operation>
PyObject* call(PyObject*, PyObject* const* arguments, intptr_t) {
  return result_or_none([&] { return call(operation, arguments); });
}

PyMethodDef direct[] = {
    {"sample", call<sample>, kFastCall, nullptr},
    {"sample_backward", call<sample_backward>, kFastCall, nullptr},
    {"grid_sample", call<grid_sample>, kFastCall, nullptr},
    {"grid_sample_backward", call<grid_sample_backward>, kFastCall, nullptr},
};

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

// Functions of Python with the arguments of the operators sample and sample_backward, and the same
// with channels first; None if this PyTorch has no way from Python's tensors to ours.
extern "C" __attribute__((visibility("default"))) PyObject* crad_kernels_direct() {
  using crad::direct;
  if (!crad::can_convert_python_tensors()) return Py_BuildValue("");
  const auto function = [](PyMethodDef& of) { return PyCFunction_NewEx(&of, nullptr, nullptr); };
  return Py_BuildValue("(NNNN)", function(direct[0]), function(direct[1]), function(direct[2]),
                       function(direct[3]));
}

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CPU, library) {
  library.impl("sample.cpu", TORCH_BOX(&crad::sample));
  library.impl("sample_backward.cpu", TORCH_BOX(&crad::sample_backward));
  library.impl("normals.cpu", TORCH_BOX(&crad::normals));
}
