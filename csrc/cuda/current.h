// Torch's current device and stream, on the LibTorch stable ABI. Where CRAD_EMULATED is defined,
// tests/emulator has given the same.
#pragma once

#if !defined(CRAD_EMULATED)

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "runtime.h"

#define CRAD_DISPATCH_KEY CUDA

namespace crad {
namespace {

constexpr torch::headeronly::DeviceType kDevice = torch::headeronly::DeviceType::CUDA;

// torch's current stream on a device. The function is looked up where torch with CUDA keeps it, and
// not linked to: this library may have been built beside a torch without CUDA.
Stream current_stream(int32_t device_index) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    STD_TORCH_CHECK(symbol, "crad_kernels: this torch has no CUDA");
    return reinterpret_cast<Function>(symbol);
  }();
  Stream stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device_index, &stream));
  return stream;
}

// Makes the device of a tensor the current one while it lives.
struct Current {
  explicit Current(const torch::stable::Tensor& tensor)
      : guard(tensor.get_device_index()), stream(current_stream(tensor.get_device_index())) {}
  torch::stable::accelerator::DeviceGuard guard;
  Stream stream;
};

}  // namespace
}  // namespace crad

#endif
