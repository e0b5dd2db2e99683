// Tensors whose channels lie before the axes of entries or points: channels first. Results lie in
// memory as the values do, see crad_kernels/_schema.py.
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "../operator/call.h"
#include "plan.h"

namespace crad {
namespace {

// A new tensor of a shape (..., channels) that lies as values do: channels first, or else last.
Tensor new_laid_out_as(const Tensor& values, std::vector<int64_t> shape, int64_t batch_axes) {
  if (!is_channels_first(values, batch_axes)) return torch::stable::new_empty(values, shape);
  std::vector<int64_t> axes(shape.size());
  std::iota(axes.begin(), axes.end(), 0);
  std::rotate(axes.begin() + batch_axes, axes.begin() + batch_axes + 1, axes.end());
  std::rotate(shape.begin() + batch_axes, shape.end() - 1, shape.end());
  return torch::stable::permute(torch::stable::new_empty(values, shape), axes);
}

// Those of a tensor (..., channels), if the points of a grid are equally far apart.
std::optional<PointStrides> point_strides_of(const Tensor& tensor, int64_t batch_axes) {
  const int64_t last = tensor.dim() - 1;
  PointStrides strides{batch_axes > 0 ? tensor.stride(0) : 0, 0, tensor.stride(last)};
  int64_t points = 1;
  for (int64_t axis = last - 1; axis >= batch_axes; --axis) {
    if (tensor.size(axis) == 1) continue;
    if (points == 1) strides.point = tensor.stride(axis);
    if (tensor.stride(axis) != points * strides.point) return std::nullopt;
    points *= tensor.size(axis);
  }
  return strides;
}

}  // namespace
}  // namespace crad
