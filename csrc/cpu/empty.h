// Tensors for results, in recycled memory where they are large.
#pragma once

#include "../operator/call.h"
#include "recycler.h"

namespace crad {
namespace {

Tensor empty(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  int64_t bytes = bytes_of(type);
  for (const int64_t length : shape) bytes *= length;
  if (bytes < Recycler::kSmallest) return torch::stable::new_empty(like, shape, type);
  void* const memory = Recycler::instance().take(bytes);
  STD_TORCH_CHECK(memory, "sample(): not enough memory for a result of ", bytes, " bytes");
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t axis = shape.size() - 1; axis > 0; --axis)
    strides[axis - 1] = strides[axis] * shape[axis];
  return torch::stable::from_blob(
      memory, shape, strides, torch::stable::Device(DeviceType::CPU), type,
      [bytes](void* data) { Recycler::instance().give_back(data, bytes); });
}

}  // namespace
}  // namespace crad
