// What the kernels take from CUDA. Where CRAD_EMULATED is defined, tests/emulator has given the
// same on the processor, so that any C++ compiler and its sanitizers take the kernels.
#pragma once

#if !defined(CRAD_EMULATED)

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "plan.h"

#define CRAD_DEVICE __device__ __forceinline__
// A kernel of which so many blocks run on a multiprocessor, at least.
#define CRAD_KERNEL(blocks) __global__ void __launch_bounds__(crad::kThreads, (blocks))
#define CRAD_UNROLL _Pragma("unroll")

// The shared memory of the block, as many bytes as it was launched with.
#define CRAD_SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]

namespace crad {

constexpr int kThreads = 256;  // of a block, at most

using Stream = void*;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string message = std::string("crad_kernels: CUDA: ") + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInsufficientDriver)
    message +=
        "; build the kernels for this GPU (set TORCH_CUDA_ARCH_LIST, run `pip install -e .` "
        "again), update its driver, or use backend=\"triton\"";
  throw std::runtime_error(message);
}

inline Device current_device() {
  int device;
  check(cudaGetDevice(&device));
  const auto attribute = [&](cudaDeviceAttr name) {
    int value;
    check(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrReservedSharedMemoryPerBlock),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), kThreads};
}

// Runs a kernel on blocks of threads with so many bytes of shared memory.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
            Stream stream, Arguments... arguments) {
  constexpr int64_t kWithoutAsking = 48 * 1024;
  // Always for all that there is: another thread may be launching the same kernel.
  if (shared > kWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(current_device().block_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

inline void clear(void* memory, int64_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

}  // namespace crad

#endif
