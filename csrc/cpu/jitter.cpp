// The operator normals: the jitter by itself, as crad_kernels/reference.py defines it.
#include "../core/jitter.h"

#include "../core/numbers.h"
#include "../operator/call.h"
#include "empty.h"
#include "parallel.h"

namespace crad {
namespace {

Tensor normals(const Tensor& seed, int64_t points, int64_t ndim) {
  check_normals(DeviceType::CPU, seed, points, ndim);
  Tensor result = empty({points, ndim}, ScalarType::Float);
  const uint64_t key = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  float* to = static_cast<float*>(result.data_ptr());
  constexpr int64_t kBytes = 1024;  // moved in the time of four normals
  parallel(points, points * ceil_div(ndim, 4) * kBytes, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t d = 0; d < ndim; d += 4) {
        float normal[4];
        jitter_normals(key, p, static_cast<uint32_t>(d / 4), normal);
        for (int64_t i = d; i < ndim && i < d + 4; ++i) to[p * ndim + i] = normal[i - d];
      }
  });
  return result;
}

}  // namespace
}  // namespace crad

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CPU, library) {
  library.impl("normals.cpu", TORCH_BOX(&crad::normals));
}
