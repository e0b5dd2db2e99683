// The CUDA backend for tests on the processor: see emulator.h.
#define CRAD_EMULATED
// clang-format off: the emulator comes first
#include "emulator.h"
// clang-format on

#include "../../csrc/cuda/levels.cu"
#include "../../csrc/cuda/sample.cu"
#include "../../csrc/cuda/sample_bfloat16.cu"
#include "../../csrc/cuda/sample_float16.cu"
#include "../../csrc/cuda/sample_float32.cu"
#include "../../csrc/cuda/sample_float64.cu"
