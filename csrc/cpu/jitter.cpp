// The operators philox and normals: the generator and the normals of the jitter by themselves, as
// crad_kernels/reference.py defines them.
#include "../core/jitter.h"

#include "../core/numbers.h"
#include "../operator/call.h"
#include "empty.h"
#include "parallel.h"

namespace crad {
namespace {

Tensor philox_words(const Tensor& counter_in, const Tensor& key_in) {
  const Tensor counter = dense(counter_in), key = dense(key_in);
  check_philox(DeviceType::CPU, counter, key);
  Tensor words = empty({counter.size(0), 4}, ScalarType::Long);
  const int64_t* c = static_cast<const int64_t*>(counter.data_ptr());
  const int64_t* k = static_cast<const int64_t*>(key.data_ptr());
  int64_t* to = static_cast<int64_t*>(words.data_ptr());
  for (int64_t i = 0; i < counter.size(0); ++i) {
    Words in;
    for (int w = 0; w < 4; ++w) in.word[w] = static_cast<uint32_t>(c[4 * i + w]);
    const Words out =
        philox(in, static_cast<uint32_t>(k[2 * i]) | static_cast<uint64_t>(k[2 * i + 1]) << 32);
    for (int w = 0; w < 4; ++w) to[4 * i + w] = out.word[w];
  }
  return words;
}

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
  library.impl("philox.cpu", TORCH_BOX(&crad::philox_words));
  library.impl("normals.cpu", TORCH_BOX(&crad::normals));
}
