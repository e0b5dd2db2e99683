// Tensors for results, in recycled memory where they are large.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../operator/call.h"
#include "memory.h"

namespace crad {
namespace {

using Shape = std::vector<int64_t>;

// The strides of a dense tensor whose channels, its last axis, come in memory after so many axes:
// after all others if it is contiguous, after those of the batch if it is channels first.
Shape dense_strides(const Shape& shape, int64_t axes_before) {
  const int64_t last = static_cast<int64_t>(shape.size()) - 1;
  Shape strides(shape.size());
  int64_t stride = 1;
  const auto set = [&](int64_t axis) {
    strides[axis] = stride;
    stride *= std::max<int64_t>(1, shape[axis]);
  };
  for (int64_t axis = last - 1; axis >= axes_before; --axis) set(axis);
  set(last);
  for (int64_t axis = axes_before - 1; axis >= 0; --axis) set(axis);
  return strides;
}

// Gives the memory of a large result back.
struct GiveBack {
  size_t size;
  void operator()(void* memory) const noexcept { recycler.give_back({memory, size}); }
};

// A dense tensor whose channels come after so many axes.
Tensor empty(const Shape& shape, ScalarType type, int64_t axes_before) {
  const Shape strides = dense_strides(shape, axes_before);
  int64_t bytes = bytes_of(type);
  for (const int64_t length : shape)
    if (__builtin_mul_overflow(bytes, length, &bytes)) bytes = INT64_MAX;
  if (bytes < static_cast<int64_t>(Recycler::kSmallest)) {
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                 dtype_of(type), aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
  const Recycler::Block block = recycler.take(bytes);
  const GiveBack give_back{block.size};
  std::unique_ptr<void, GiveBack> memory(block.memory, give_back);
  STD_TORCH_CHECK(memory, "sample(): not enough memory for a result of ", bytes, " bytes");
  const Tensor tensor = torch::stable::from_blob(
      memory.get(), shape, strides, torch::stable::Device(DeviceType::CPU), type, give_back);
  memory.release();
  return tensor;
}

Tensor empty(const Shape& shape, ScalarType type) {
  return empty(shape, type, static_cast<int64_t>(shape.size()) - 1);
}

}  // namespace
}  // namespace crad
