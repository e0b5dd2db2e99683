// A call of the operators: tensors in, on the LibTorch stable ABI, and what the kernels are given
// out. Tensors that do not fit together are refused here, and Python then says why.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../core/problem.h"

namespace crad {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline ValueType value_type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return ValueType::float64;
    case ScalarType::Float:
      return ValueType::float32;
    case ScalarType::BFloat16:
      return ValueType::bfloat16;
    case ScalarType::Half:
      return ValueType::float16;
    default:
      STD_TORCH_CHECK(false, "sample(): unexpected dtype of values");
  }
}

inline CoordType coord_type_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float,
                  "sample(): unexpected dtype of coords");
  return type == ScalarType::Double ? CoordType::float64 : CoordType::float32;
}

// The type that sums of values are taken in.
inline ScalarType accumulator_of(ValueType type) {
  return type == ValueType::float64 ? ScalarType::Double : ScalarType::Float;
}

// A dtype as torch's C functions take it.
inline int32_t dtype_of(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

inline int64_t bytes_of(ScalarType type) {
  return static_cast<int64_t>(aoti_torch_dtype_element_size(dtype_of(type)));
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() && a.get_device_index() == b.get_device_index();
}

// Whether a tensor (..., channels) lies channels first: dense, with its channels behind its batch
// axes. A contiguous one does not.
inline bool is_channels_first(const Tensor& tensor, int64_t batch_axes) {
  if (tensor.is_contiguous()) return false;
  const int64_t last = tensor.dim() - 1;
  int64_t apart = 1;
  bool dense = true;
  const auto take = [&](int64_t axis) {
    const int64_t size = tensor.size(axis);
    dense &= size == 1 || tensor.stride(axis) == apart;
    apart *= size;
  };
  for (int64_t axis = last - 1; axis >= batch_axes; --axis) take(axis);
  take(last);
  for (int64_t axis = batch_axes - 1; axis >= 0; --axis) take(axis);
  return dense;
}

// Whether this can be the gradient of a result of a shape, with the dtype and device of values.
inline bool is_gradient(const Tensor& grad_output, const std::vector<int64_t>& shape,
                        const Tensor& values) {
  return same_device(grad_output, values) && grad_output.scalar_type() == values.scalar_type() &&
         std::equal(shape.begin(), shape.end(), grad_output.sizes().begin(),
                    grad_output.sizes().end());
}

// A call with its tensors kept alive, in the layout that they are given in; `problem` takes values
// and coords to be contiguous until it is told otherwise. For its options, which are one integer,
// see crad_kernels/_schema.py.
struct Call {
  Tensor values, coords;
  std::optional<Tensor> seed, jitter_std;
  Problem problem;
  int64_t batch_axes;  // before the grid's in values: 1 if each batch item has its own grid, or 0
  int64_t points;
  bool deterministic;  // nothing may be summed in an order that varies

  Call(DeviceType device, const Tensor& values_in, const Tensor& coords_in,
       const std::optional<Tensor>& seed_in, const std::optional<Tensor>& jitter_std_in,
       int64_t options)
      : values(values_in), coords(coords_in), problem{} {
    STD_TORCH_CHECK(values.device().type() == device && same_device(values, coords),
                    "sample(): expected values and coords on one device, of the backend's type");
    STD_TORCH_CHECK(coords.dim() >= 1, "sample(): expected coords to have an axis");
    const int64_t ndim = coords.size(coords.dim() - 1);
    STD_TORCH_CHECK(ndim >= 1 && ndim <= kMaxDim, "sample(): expected 1 to 8 components");
    batch_axes = values.dim() - 1 - ndim;
    const bool batched = batch_axes == 1;
    STD_TORCH_CHECK(batched || batch_axes == 0, "sample(): values and coords do not fit together");
    problem.value_type = value_type_of(values);
    problem.coord_type = coord_type_of(coords);
    problem.coords = coords.data_ptr();
    problem.ndim = static_cast<int>(ndim);
    problem.entries = 1;
    for (int64_t axis = 0; axis < ndim; ++axis) {
      problem.size[axis] = values.size(axis + batched);
      problem.entries *= problem.size[axis];
    }
    STD_TORCH_CHECK(problem.entries > 0, "sample(): expected values to have an entry");
    problem.channels = values.size(values.dim() - 1);
    problem.grids = batched ? values.size(0) : 1;
    set_contiguous(values, problem.channels);
    points = coords.numel() / ndim;
    STD_TORCH_CHECK(!batched || (coords.dim() >= 2 && coords.size(0) == problem.grids),
                    "sample(): values and coords do not have the same batch size");
    problem.points_per_grid = problem.grids > 0 ? points / problem.grids : 0;
    const int64_t mode = options & 3, differences = options >> 40;
    const bool simplex = mode == kSimplex;
    STD_TORCH_CHECK(differences >> 3 * (ndim - 1) == 0, "sample(): unexpected options");
    problem.mode = simplex ? Mode::linear : static_cast<Mode>(mode);
    problem.simplex = simplex && ndim > 1;  // along one axis it is linear
    for (int64_t d = 0; d < ndim; ++d) {
      const int64_t padding_and_align =
          ((options >> 2) ^ (d > 0 ? differences >> (3 * (d - 1)) : 0)) & 7;
      const int64_t axis = ndim - 1 - d;
      problem.padding[axis] = static_cast<Padding>(padding_and_align & 3);
      problem.align_corners[axis] = padding_and_align >> 2;
    }
    problem.unit = static_cast<Unit>(options >> 6 & 1);
    problem.derivative = options >> 8 & 0xFFFFFFFF;
    deterministic = options >> 5 & 1;
    STD_TORCH_CHECK(seed_in.has_value() == jitter_std_in.has_value(),
                    "sample(): expected seed and jitter_std together, or neither");
    if (seed_in && jitter_std_in) {
      seed = dense(*seed_in);
      jitter_std = dense(*jitter_std_in);
      STD_TORCH_CHECK(
          seed->dim() == 0 && seed->scalar_type() == ScalarType::Long &&
              same_device(*seed, coords) && jitter_std->dim() == 1 && jitter_std->numel() == ndim &&
              jitter_std->scalar_type() == coords.scalar_type() && same_device(*jitter_std, coords),
          "sample(): unexpected seed or jitter_std");
      problem.seed = static_cast<const int64_t*>(seed->data_ptr());
      problem.jitter_std = jitter_std->data_ptr();
    }
  }

  // The same values, channels last, with entries that lie `row` elements apart; and so does their
  // gradient.
  void set_contiguous(const Tensor& laid_out, int64_t row) {
    values = laid_out;
    problem.values = values.data_ptr();
    set_dense(problem, row);
  }

  // Lets the call read values where they lie; their gradient lies as it did.
  void set_strided(const Tensor& laid_out) {
    values = laid_out;
    problem.values = values.data_ptr();
    const int64_t last = values.dim() - 1;
    problem.channel_stride = problem.channels == 1 ? 1 : values.stride(last);
    // Of an axis of one entry, any stride is right, but not every one is small.
    int64_t stride = problem.channels * problem.channel_stride;
    for (int axis = problem.ndim - 1; axis >= 0; --axis) {
      if (problem.size[axis] > 1) stride = values.stride(last - problem.ndim + axis);
      problem.stride[axis] = stride;
      stride *= problem.size[axis];
    }
    problem.grid_stride = batch_axes > 0 ? values.stride(0) : 0;
  }

  bool empty() const { return points == 0 || problem.channels == 0; }

  std::vector<int64_t> output_shape() const {
    std::vector<int64_t> shape(coords.sizes().begin(), coords.sizes().end());
    shape.back() = problem.channels;
    return shape;
  }

  // Raises unless this is the gradient of an output.
  void check(const Tensor& grad_output) const {
    STD_TORCH_CHECK(is_gradient(grad_output, output_shape(), values),
                    "sample_backward(): expected grad_output of the shape of the sample, with the "
                    "dtype and device of values");
  }
};

// The shape of a gradient: that of its argument, or empty if it is not wanted.
inline std::vector<int64_t> gradient_shape(const Tensor& argument, bool wanted) {
  if (!wanted) return {0};
  return {argument.sizes().begin(), argument.sizes().end()};
}

// The arguments of `normals`: see crad_kernels/reference.py.
inline void check_normals(DeviceType device, const Tensor& seed, int64_t points, int64_t ndim) {
  STD_TORCH_CHECK(
      seed.dim() == 0 && seed.scalar_type() == ScalarType::Long && seed.device().type() == device,
      "normals(): expected an int64 seed on the backend's device");
  STD_TORCH_CHECK(points >= 0 && ndim >= 0 && ndim <= kMaxDim,
                  "normals(): expected a number of points and at most 8 components");
}

}  // namespace crad
