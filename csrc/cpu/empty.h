// Tensors for results, in recycled memory where they are large.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <memory>
#include <vector>

#include "../operator/call.h"
#include "memory.h"

namespace crad {
namespace {

using Shape = std::vector<int64_t>;

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t axis = shape.size() - 1; axis > 0; --axis)
    strides[axis - 1] = strides[axis] * (shape[axis] > 1 ? shape[axis] : 1);
  return strides;
}

int32_t dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    default:
      STD_TORCH_CHECK(false, "sample(): unexpected dtype");
  }
}

// Gives the memory of a large result back.
struct GiveBack {
  size_t size;
  void operator()(void* memory) const noexcept { recycler.give_back({memory, size}); }
};

// A tensor that is dense, with its axes in the order that the strides say.
Tensor empty_strided(const Shape& shape, const Shape& strides, ScalarType type) {
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
  return empty_strided(shape, contiguous_strides(shape), type);
}

}  // namespace
}  // namespace crad
