// The CUDA backend for tests on the processor: see emulator.h.
#define CRAD_EMULATED
#include "kernels_bfloat16.cu"
#include "kernels_float16.cu"
#include "kernels_float32.cu"
#include "kernels_float64.cu"
#include "launch.cu"
#include "ops.cu"
