// The operators of the CUDA backend. Nothing here waits for the device, so a CUDA graph can capture
// it.
//
// The way of `coords`: sample() below checks them (operator/call.h) and describes them in a Problem
// (core/problem.h). plan.h cuts that into blocks, launches_impl.h chooses the compiled variant of a
// kernel. In the kernel (forward.h, backward_on_chip.h, backward_by_cell.h, backward_in_memory.h,
// deterministic.h) a block locates a batch of its points, one a thread, by corners.h: core/jitter.h
// moves a coordinate, core/axis.h turns it into taps, and their products are the corners, kept in
// shared memory. Then all threads of the block read the corners and move channels, as vectors of
// vector.h. Partial sums of blocks are added up by sums.h.
#include <algorithm>
#include <array>
#include <tuple>

#include "../operator/call.h"
#include "current.h"
#include "deterministic.h"
#include "forced.h"
#include "launches.h"
#include "normals.h"
#include "sums.h"

namespace crad {
namespace {

// Calls f with the launches for the type of the values.
template <class F>
void with_launches(const Problem& problem, F f) {
  switch (problem.value_type) {
    case ValueType::float64:
      return f(Launches<double>());
    case ValueType::float32:
      return f(Launches<float>());
    case ValueType::bfloat16:
      return f(Launches<bfloat16>());
    case ValueType::float16:
      return f(Launches<float16>());
  }
}

// Calls f(X, A) with the type of the coordinates, and that which sums of values are taken in.
template <class F>
void with_coord_and_sum(const Problem& problem, F f) {
  const bool wide = problem.value_type == ValueType::float64;
  if (problem.coord_type == CoordType::float64)
    wide ? f(double(), double()) : f(double(), float());
  else
    wide ? f(float(), double()) : f(float(), float());
}

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

Tensor sample(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
              const std::optional<Tensor>& jitter_std, int64_t options) {
  const Current current(values);
  const Call call(kDevice, dense(values), dense(coords), seed, jitter_std, options);
  const Problem& problem = call.problem;
  Tensor output = torch::stable::new_empty(values, call.output_shape());
  if (call.empty()) return output;
  const Device device = current_device();
  const Plan plan = plan_forward(problem, device, forced_plan());
  check_plan(plan, device);
  with_launches(problem, [&](auto launches) {
    launches.sample(problem, plan, current.stream, output.data_ptr());
  });
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

// Adds to `sums`, the zeroed gradient of the values, without atomic additions: see deterministic.h.
void add_in_order(const Problem& problem, Stream stream, const Tensor& grad_output, Tensor& sums) {
  // Contributions that are sorted together; each takes 36 bytes. Their rests, a row of channels for
  // every piece, have at most kRests elements, or as many as those of one point.
  constexpr int64_t kMost = 1 << 22, kRests = 1 << 24;
  const int64_t corners = corners_of_a_point(problem);
  const int64_t points = problem.grids * problem.points_per_grid;
  const int64_t most = std::min(kMost, kRests / problem.channels * (kMost / pieces_of(kMost)));
  const int64_t together = std::min(points, std::max<int64_t>(1, most / corners));
  Tensor entries = torch::stable::new_empty(sums, {together * corners}, ScalarType::Long);
  const Tensor weights = torch::stable::new_empty(sums, {together * corners});
  const Tensor rests =
      torch::stable::new_empty(sums, {pieces_of(together * corners), problem.channels});
  const Plan plan = plan_contributions(problem, current_device());
  for (int64_t first = 0; first < points; first += together) {
    const int64_t count = std::min(together, points - first);
    with_coord_and_sum(problem, [&](auto coord, auto sum) {
      using A = decltype(sum);
      launch(list_contributions<decltype(coord), A>, ceil_div(count, plan.batch), plan.threads,
             plan.shared, stream, problem, plan, first, count, pointer<int64_t>(entries),
             pointer<A>(weights));
    });
    const auto [keys, order] = sorted(torch::stable::narrow(entries, 0, 0, count * corners));
    with_launches(problem, [&, &keys = keys, &order = order](auto launches) {
      launches.add_contributions(problem, stream, first, count, pointer<int64_t>(keys),
                                 pointer<int64_t>(order), weights.data_ptr(),
                                 grad_output.data_ptr(), sums.data_ptr(), rests.data_ptr());
    });
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

  const Device device = current_device();
  const Forced forced = forced_plan();
  const Plan plan =
      plan_backward(problem, device, grad_output.data_ptr(), want_values, want_coords, forced);
  check_plan(plan, device);
  const bool on_chip = plan.family != Family::in_memory;
  const bool in_order = want_values && !on_chip && call.deterministic;
  const ScalarType sum_type = accumulator_of(problem.value_type);
  // The gradient itself where one part of its type is all there is.
  const auto parts_of = [&](const Tensor& gradient, int64_t number) {
    if (number == 1 && gradient.scalar_type() == sum_type) return gradient;
    return torch::stable::new_empty(gradient, {number * gradient.numel()}, sum_type);
  };
  const int64_t value_parts = on_chip ? plan.chunks : 1;
  Tensor values_parts = parts_of(grad_values, value_parts);
  const Tensor coords_parts = parts_of(grad_coords, plan.tiles);
  if (want_values && !on_chip)
    clear(values_parts.data_ptr(), values_parts.numel() * bytes_of(sum_type), current.stream);
  if (in_order) add_in_order(problem, current.stream, grad_output, values_parts);
  with_launches(problem, [&](auto launches) {
    if (want_coords || !in_order)
      launches.backward(problem, plan, current.stream, grad_output.data_ptr(),
                        want_values && !in_order ? values_parts.data_ptr() : nullptr,
                        want_coords ? coords_parts.data_ptr() : nullptr);
    if (want_values && values_parts.data_ptr() != grad_values.data_ptr())
      launches.sum_values(current.stream, values_parts.data_ptr(), value_parts, grad_values.numel(),
                          columns_of_sums(device, value_parts, grad_values.numel(), forced),
                          grad_values.data_ptr());
  });
  if (want_coords && coords_parts.data_ptr() != grad_coords.data_ptr())
    with_coord_and_sum(problem, [&](auto coord, auto sum) {
      launch_sum<decltype(coord), decltype(sum)>(
          coords_parts.data_ptr(), plan.tiles, grad_coords.numel(),
          columns_of_sums(device, plan.tiles, grad_coords.numel(), forced), current.stream,
          grad_coords.data_ptr());
    });
  return {grad_values, grad_coords};
}

Tensor philox_of_counters(const Tensor& counter_in, const Tensor& key_in) {
  const Current current(counter_in);
  const Tensor counter = dense(counter_in), key = dense(key_in);
  check_philox(kDevice, counter, key);
  const int64_t number = counter.size(0);
  Tensor words = torch::stable::new_empty(counter, {number, 4});
  if (number > 0)
    launch(philox_words, ceil_div(number, kThreads), kThreads, 0, current.stream,
           pointer<int64_t>(counter), pointer<int64_t>(key), number, pointer<int64_t>(words));
  return words;
}

Tensor normals(const Tensor& seed, int64_t points, int64_t ndim) {
  const Current current(seed);
  check_normals(kDevice, seed, points, ndim);
  Tensor result = torch::stable::new_empty(seed, {points, ndim}, ScalarType::Float);
  if (result.numel() > 0)
    launch(normals_of_points, ceil_div(points, kThreads), kThreads, 0, current.stream,
           pointer<int64_t>(seed), points, static_cast<int>(ndim), pointer<float>(result));
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
