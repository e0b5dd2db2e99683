// The operators of the CUDA backend: tensors in and out, on the LibTorch stable ABI. Nothing here
// waits for the device, so a CUDA graph can capture it.
#include "../operator/call.h"
#include "launch.h"

#if !defined(CRAD_EMULATED)
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <algorithm>
#include <array>
#include <tuple>

namespace crad {
namespace {

#if defined(CRAD_EMULATED)
constexpr DeviceType kDevice = DeviceType::CPU;

struct Current {
  explicit Current(const Tensor&) {}
  Stream stream = nullptr;
};
#else
constexpr DeviceType kDevice = DeviceType::CUDA;

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
  explicit Current(const Tensor& tensor)
      : guard(tensor.get_device_index()), stream(current_stream(tensor.get_device_index())) {}
  torch::stable::accelerator::DeviceGuard guard;
  Stream stream;
};
#endif

Tensor sample(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
              const std::optional<Tensor>& jitter_std, int64_t options) {
  const Current current(values);
  const Call call(kDevice, dense(values), dense(coords), seed, jitter_std, options);
  Tensor output = torch::stable::new_empty(values, call.output_shape());
  if (!call.empty()) launch_sample(call.problem, current.stream, output.data_ptr());
  return output;
}

std::tuple<Tensor, Tensor> sorted(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}),
                                    from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Adds to `sums`, the zeroed gradient of the values, without atomic additions.
void add_in_order(const Problem& problem, Stream stream, const Tensor& grad_output, Tensor& sums) {
  // Contributions that are sorted together; each takes 36 bytes. Their rests, a row of channels for
  // every piece, have at most kRests elements, or as many as those of one point.
  constexpr int64_t kMost = 1 << 22, kRests = 1 << 24;
  const int64_t corners = contributions_of_a_point(problem);
  const int64_t points = problem.grids * problem.points_per_grid;
  const int64_t most = std::min(kMost, kRests / problem.channels * (kMost / pieces_of(kMost)));
  const int64_t together = std::min(points, std::max<int64_t>(1, most / corners));
  Tensor entries = torch::stable::new_empty(sums, {together * corners}, ScalarType::Long);
  Tensor weights = torch::stable::new_empty(sums, {together * corners});
  Tensor rests = torch::stable::new_empty(sums, {pieces_of(together * corners), problem.channels});
  for (int64_t first = 0; first < points; first += together) {
    const int64_t count = std::min(together, points - first);
    launch_list_contributions(problem, stream, first, count,
                              static_cast<int64_t*>(entries.data_ptr()), weights.data_ptr());
    const auto [keys, order] = sorted(torch::stable::narrow(entries, 0, 0, count * corners));
    launch_add_contributions(problem, stream, first, count,
                             static_cast<const int64_t*>(keys.data_ptr()),
                             static_cast<const int64_t*>(order.data_ptr()), weights.data_ptr(),
                             grad_output.data_ptr(), sums.data_ptr(), rests.data_ptr());
  }
}

// The gradients of sum(grad_output * sample(values, coords)) with respect to values and coords; an
// empty tensor for the one that is not wanted.
std::tuple<Tensor, Tensor> sample_backward(const Tensor& grad_output_in, const Tensor& values,
                                           const Tensor& coords, const std::optional<Tensor>& seed,
                                           const std::optional<Tensor>& jitter_std, int64_t options,
                                           bool want_values, bool want_coords) {
  const Current current(values);
  const Call call(kDevice, dense(values), dense(coords), seed, jitter_std, options);
  const Problem& problem = call.problem;
  call.check(grad_output_in);
  const Tensor grad_output = dense(grad_output_in);
  Tensor grad_values = torch::stable::new_empty(values, gradient_shape(values, want_values));
  Tensor grad_coords = torch::stable::new_empty(coords, gradient_shape(coords, want_coords));
  if (call.empty()) {
    torch::stable::zero_(grad_values);
    torch::stable::zero_(grad_coords);
  }
  if (call.empty() || !(want_values || want_coords)) return {grad_values, grad_coords};

  const ScalarType sum_type = accumulator_of(problem.value_type);
  // The gradient itself where one part of its type is all there is.
  const auto parts_of = [&](const Tensor& gradient, int64_t number) {
    if (number == 1 && gradient.scalar_type() == sum_type) return gradient;
    return torch::stable::new_empty(gradient, {number * gradient.numel()}, sum_type);
  };
  BackwardPlan plan = plan_backward(problem, grad_output.data_ptr(), want_values, want_coords);
  const bool in_order = want_values && !plan.on_chip && call.deterministic;
  Tensor values_parts = parts_of(grad_values, plan.value_parts);
  Tensor coords_parts = parts_of(grad_coords, plan.coord_parts);
  if (want_values && !plan.on_chip)
    clear(values_parts.data_ptr(), values_parts.numel() * bytes_of(sum_type), current.stream);
  if (in_order) add_in_order(problem, current.stream, grad_output, values_parts);
  if (want_coords || !in_order)
    launch_backward(problem, plan, current.stream, grad_output.data_ptr(),
                    want_values && !in_order ? values_parts.data_ptr() : nullptr,
                    want_coords ? coords_parts.data_ptr() : nullptr);
  if (want_values && values_parts.data_ptr() != grad_values.data_ptr())
    launch_sum_values(problem, current.stream, values_parts.data_ptr(), plan.value_parts,
                      grad_values.numel(), grad_values.data_ptr());
  if (want_coords && coords_parts.data_ptr() != grad_coords.data_ptr())
    launch_sum_coords(problem, current.stream, coords_parts.data_ptr(), plan.coord_parts,
                      grad_coords.numel(), grad_coords.data_ptr());
  return {grad_values, grad_coords};
}

Tensor philox_of_counters(const Tensor& counter_in, const Tensor& key_in) {
  const Current current(counter_in);
  const Tensor counter = dense(counter_in), key = dense(key_in);
  check_philox(kDevice, counter, key);
  Tensor words = torch::stable::new_empty(counter, {counter.size(0), 4});
  if (counter.size(0) > 0)
    launch_philox(current.stream, static_cast<const int64_t*>(counter.data_ptr()),
                  static_cast<const int64_t*>(key.data_ptr()), counter.size(0),
                  static_cast<int64_t*>(words.data_ptr()));
  return words;
}

Tensor normals(const Tensor& seed, int64_t points, int64_t ndim) {
  const Current current(seed);
  check_normals(kDevice, seed, points, ndim);
  Tensor result = torch::stable::new_empty(seed, {points, ndim}, ScalarType::Float);
  if (result.numel() > 0)
    launch_normals(current.stream, static_cast<const int64_t*>(seed.data_ptr()), points,
                   static_cast<int>(ndim), static_cast<float*>(result.data_ptr()));
  return result;
}

}  // namespace
}  // namespace crad

#if defined(CRAD_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CPU, library) {
#else
// The oldest compute capability that this library was compiled for, times 100: 800.
extern "C" __attribute__((visibility("default"))) int crad_kernels_oldest_architecture() {
  return std::min({__CUDA_ARCH_LIST__});
}

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CUDA, library) {
#endif
  library.impl("sample.cuda", TORCH_BOX(&crad::sample));
  library.impl("sample_backward.cuda", TORCH_BOX(&crad::sample_backward));
  library.impl("philox.cuda", TORCH_BOX(&crad::philox_of_counters));
  library.impl("normals.cuda", TORCH_BOX(&crad::normals));
}
