// Channels-first tensors made channels last, and back: torch's own copies run on one thread, and
// take longer than the sampling.
#pragma once

#include <algorithm>
#include <cstring>

#include "empty.h"
#include "kernels.h"
#include "parallel.h"
#include "plan.h"

namespace crad {
namespace {

Shape shape_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

enum class To { rows, planes };

// Fills a tensor with another of the same shape: one of them is contiguous, the other one channels
// first.
void transpose(To to, const Tensor& from_tensor, const Tensor& to_tensor, int64_t batch_axes) {
  // So many rows that a channel of them is read or written in a long run, and all stay in a cache.
  constexpr int64_t kBytes = 256 * 1024, kFewestRows = 64;
  const int64_t element = bytes_of(from_tensor.scalar_type());
  const char* const from = static_cast<const char*>(from_tensor.data_ptr());
  char* const target = static_cast<char*>(to_tensor.data_ptr());
  const int64_t last = to_tensor.dim() - 1, channels = to_tensor.size(last);
  int64_t batch = 1, rows = 1;
  for (int64_t axis = 0; axis < last; ++axis)
    (axis < batch_axes ? batch : rows) *= to_tensor.size(axis);
  if (batch * rows * channels == 0) return;
  const int64_t run = std::max(kFewestRows, kBytes / (element * channels) / 64 * 64);
  const int64_t pieces = ceil_div(rows, run);
  const int64_t moved = 2 * batch * rows * channels * element;
  parallel(batch * pieces, moved, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t item = piece / pieces * rows * channels * element;
      const int64_t begin = piece % pieces * run, number = std::min(run, rows - begin);
      const int64_t in_rows = item + begin * channels * element;
      const int64_t in_planes = item + begin * element;
      if (to == To::rows)
        kernels().transpose(element, from + in_planes, rows, channels, number, target + in_rows,
                            channels);
      else
        kernels().transpose(element, from + in_rows, channels, number, channels, target + in_planes,
                            rows);
    }
  });
}

// A contiguous copy of a tensor that is channels first.
Tensor channels_last(const Tensor& tensor, int64_t batch_axes) {
  const Tensor copy = empty(shape_of(tensor), tensor.scalar_type());
  transpose(To::rows, tensor, copy, batch_axes);
  return copy;
}

// A copy of a contiguous tensor, channels first.
Tensor channels_first(const Tensor& tensor, int64_t batch_axes) {
  const Tensor copy = empty(shape_of(tensor), tensor.scalar_type(), batch_axes);
  transpose(To::planes, tensor, copy, batch_axes);
  return copy;
}

// Where the rows of a tensor lie: null if it is contiguous, or else `strides`, filled in.
const RowStrides* strides_of(const Tensor& tensor, RowStrides& strides) {
  if (tensor.is_contiguous()) return nullptr;
  const int64_t last = tensor.dim() - 1;
  strides.step = tensor.size(last) == 1 ? 1 : tensor.stride(last);
  strides.axes = 0;
  for (int64_t axis = 0; axis < last; ++axis) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis);
    if (size == 1) continue;
    const int before = strides.axes - 1;
    if (before >= 0 && strides.stride[before] == size * stride) {
      strides.size[before] *= size;
      strides.stride[before] = stride;
    } else {
      strides.size[strides.axes] = size;
      strides.stride[strides.axes++] = stride;
    }
  }
  return &strides;
}

enum class Pass { forward, backward };

// Lets a call read values that are not contiguous: in place, or, where they are small, a copy.
void read_strided(Call& call, const Tensor& values, Pass pass) {
  constexpr int64_t kSmall = 4 * 1024 * 1024;  // bytes
  call.set_strided(values);
  if (is_dense(call.problem)) return;
  if (has_few_points(call.problem)) return;
  if (pass == Pass::forward && samples_point_lanes(call.problem)) return;
  if (is_channels_first(values, call.batch_axes))
    call.set_contiguous(channels_last(values, call.batch_axes), call.problem.channels);
  else if (values.numel() <= kSmall / bytes_of(values.scalar_type()))
    call.set_contiguous(dense(values), call.problem.channels);
}

// Lets a call read its values, whatever their strides. Where all batch items have the same grid,
// there is one, and all points are its own, unless each item's gradient is wanted.
void read_values(Call& call, Pass pass, bool want_values) {
  Problem& problem = call.problem;
  const Tensor values = call.values;
  if (values.is_contiguous()) return;
  if (call.batch_axes == 0 || problem.grids <= 1 || values.stride(0) != 0)
    return read_strided(call, values, pass);
  const Tensor grid = torch::stable::narrow(call.values, 0, 0, 1);
  const int64_t grids = problem.grids, points = problem.points_per_grid;
  problem.grids = 1;
  problem.points_per_grid = call.points;
  if (grid.is_contiguous())
    call.set_contiguous(grid, problem.channels);
  else
    read_strided(call, grid, pass);
  if (!want_values) return;
  problem.grids = grids;
  problem.points_per_grid = points;
  problem.grid_stride = 0;
}

// The gradient of a call's output: a copy where it is channels first and points are taken band by
// band, since rows of points that are apart are slow to gather from planes.
Tensor gradient_by_rows(const Call& call, const Tensor& grad_output) {
  if (grad_output.is_contiguous() || bands_of(call.problem).number == 0 || call.problem.point_lanes)
    return grad_output;
  for (int64_t batch_axes = 0; batch_axes <= 1 && batch_axes < grad_output.dim(); ++batch_axes)
    if (is_channels_first(grad_output, batch_axes)) return channels_last(grad_output, batch_axes);
  return grad_output;
}

// Lets a call read a copy of its dense values whose entries lie `row` elements apart.
void copy_rows(Call& call, int64_t row) {
  Problem& problem = call.problem;
  if (row == problem.row) return;
  const int64_t element = bytes_of(call.values.scalar_type());
  const Tensor copy = empty({problem.grids * problem.entries, row}, call.values.scalar_type());
  char* to = static_cast<char*>(copy.data_ptr());
  for (int64_t grid = 0; grid < problem.grids; ++grid) {
    const char* from =
        static_cast<const char*>(problem.values) + grid * problem.grid_stride * element;
    for (int64_t entry = 0; entry < problem.entries; ++entry) {
      std::memcpy(to, from, problem.channels * element);
      to += row * element;
      from += problem.channels * element;
    }
  }
  call.set_contiguous(copy, row);
}

}  // namespace
}  // namespace crad
