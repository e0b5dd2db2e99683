// The operators of the CUDA backend. Nothing here waits for the device, so a CUDA graph can capture
// it.
//
// The way of `coords`: sample() below checks them (operator/call.h) and describes them in a Problem
// (core/problem.h). plan_forward.h or plan_backward.h cuts that into blocks, launches_impl.h
// chooses the compiled variant of a kernel. In the kernel (forward.h, planes.h, backward_on_chip.h,
// backward_by_cell.h, backward_in_memory.h, deterministic.h) a block locates a batch of its points,
// one a thread, by corners.h: core/jitter.h moves a coordinate, core/axis.h turns it into taps, and
// their products are the corners, kept in shared memory. Then all threads of the block read the
// corners and move channels, as vectors of vector.h. sums.h adds up partial sums of blocks.
#include <algorithm>
#include <array>
#include <tuple>

#include "../operator/call.h"
#include "current.h"
#include "deterministic.h"
#include "forced.h"
#include "launches.h"
#include "layout.h"
#include "normals.h"
#include "plan_backward.h"
#include "plan_in_order.h"
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

// The values are read where they lie, whatever their strides.
Tensor sample(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
              const std::optional<Tensor>& jitter_std, int64_t options) {
  const Current current(values);
  Call call(kDevice, values, dense(coords), seed, jitter_std, options);
  call.set_strided(values);
  const Problem& problem = call.problem;
  const int64_t batch_axes = values.dim() - 1 - problem.ndim;
  const Tensor output = is_channels_first(values, batch_axes)
                            ? new_channels_first(values, call.output_shape(), batch_axes)
                            : torch::stable::new_empty(values, call.output_shape());
  if (call.empty()) return output;
  const Device device = current_device();
  const Plan plan = plan_forward(problem, device, forced_plan());
  check_plan(plan, device);
  with_launches(problem, [&](auto launches) {
    launches.sample(problem, plan, current.stream, *rows_of(output, batch_axes), output.data_ptr());
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
void add_in_order(const Problem& problem, const Device& device, const Forced& forced, Stream stream,
                  const Tensor& grad_output, Tensor& sums) {
  Order order{};
  const Plan plan = plan_in_order(problem, device, grad_output.data_ptr(), order, forced);
  const Plan plan_of_keys = plan_keys(problem, device, order);
  const int64_t points = problem.grids * problem.points_per_grid;
  const int64_t items = order.together * order.items;
  Tensor keys =
      torch::stable::new_empty(sums, {items}, order.wide() ? ScalarType::Long : ScalarType::Int);
  const Tensor rests = torch::stable::new_empty(
      sums, {ceil_div(items, order.piece), order.corners, problem.channels});
  for (int64_t first = 0; first < points; first += order.together) {
    const int64_t count = std::min(order.together, points - first);
    with_coord_and_sum(problem, [&](auto coord, auto) {
      launch(list_keys<decltype(coord)>, ceil_div(count, plan_of_keys.batch), plan_of_keys.threads,
             plan_of_keys.shared, stream, problem, plan_of_keys, order, first, count,
             Keys{keys.data_ptr(), order.wide()});
    });
    const auto [sorted_keys, numbers] =
        sorted(torch::stable::narrow(keys, 0, 0, count * order.items));
    with_launches(problem, [&, &sorted_keys = sorted_keys, &numbers = numbers](auto launches) {
      launches.add_in_order(problem, plan, order, stream, first, count, sorted_keys.data_ptr(),
                            pointer<int64_t>(numbers), grad_output.data_ptr(), sums.data_ptr(),
                            rests.data_ptr());
    });
  }
}

// The gradients of sum(grad_output * sample(values, coords)) with respect to values, which lies in
// memory as they do, and coords; an empty tensor for the one that is not wanted. Grids that fit on
// the chip, and calls that are to be deterministic, have dense values: a copy where they are not.
std::tuple<Tensor, Tensor> sample_backward(const Tensor& grad_output_in, const Tensor& values,
                                           const Tensor& coords, const std::optional<Tensor>& seed,
                                           const std::optional<Tensor>& jitter_std, int64_t options,
                                           bool want_values, bool want_coords) {
  const Current current(values);
  Call call(kDevice, values, dense(coords), seed, jitter_std, options);
  call.check(grad_output_in);
  const Problem& problem = call.problem;
  const int64_t batch_axes = values.dim() - 1 - problem.ndim;
  const bool channels_first = want_values && is_channels_first(values, batch_axes);
  const auto new_grad_values = [&](bool first) {
    const std::vector<int64_t> shape = gradient_shape(values, want_values);
    return first ? new_channels_first(values, shape, batch_axes)
                 : torch::stable::new_empty(values, shape);
  };
  Tensor grad_coords = torch::stable::new_empty(coords, gradient_shape(coords, want_coords));
  if (call.empty() || !(want_values || want_coords)) {
    Tensor grad_values = new_grad_values(channels_first);
    torch::stable::zero_(grad_values);
    torch::stable::zero_(grad_coords);
    return {grad_values, grad_coords};
  }

  const Device device = current_device();
  const Forced forced = forced_plan();
  const auto plan_for = [&](const void* grad_output) {
    return plan_backward(problem, device, grad_output, want_values, want_coords, forced);
  };
  const bool strided = !values.is_contiguous() && !call.deterministic &&
                       plan_for(nullptr).family == Family::in_memory;
  const bool planes_of_values = strided && channels_first,
             planes_of_coords = strided && want_coords;
  const bool planes = planes_of_values || planes_of_coords;
  const bool coords_by_rows = want_coords && !planes_of_coords;
  // All kernels but that of planes take dense rows.
  const bool rows = (want_values && !planes_of_values) || coords_by_rows;
  const Tensor grad_output =
      rows || !rows_of(grad_output_in, batch_axes) ? dense(grad_output_in) : grad_output_in;
  const Plan plan_of_planes =
      planes ? plan_backward_planes(problem, device, planes_of_coords, forced) : Plan{};
  Call call_of_planes = call;
  call_of_planes.set_strided(values);
  if (coords_by_rows) call.set_contiguous(dense(values), problem.channels);
  const Plan plan = plan_for(grad_output.data_ptr());
  if (rows) check_plan(plan, device);
  if (planes) check_plan(plan_of_planes, device);
  const bool on_chip = !planes_of_values && plan.family != Family::in_memory;
  const bool in_order = want_values && !on_chip && call.deterministic;
  const bool values_by_rows = want_values && !in_order && !planes_of_values;

  Tensor grad_values = new_grad_values(planes_of_values);
  const ScalarType sum_type = accumulator_of(problem.value_type);
  // The gradient itself where one part of its type is all there is.
  const auto parts_of = [&](const Tensor& gradient, int64_t number) {
    if (number == 1 && gradient.scalar_type() == sum_type) return gradient;
    return torch::stable::new_empty(gradient, {number * gradient.numel()}, sum_type);
  };
  const int64_t value_parts = on_chip ? plan.chunks : 1;
  const int64_t coord_parts =
      planes_of_coords ? plan_of_planes.tiles * plan_of_planes.lanes : plan.tiles;
  Tensor values_parts = parts_of(grad_values, value_parts);
  const Tensor coords_parts = parts_of(grad_coords, coord_parts);
  const auto target = [](const Tensor& parts, bool wanted) {
    return wanted ? parts.data_ptr() : nullptr;
  };
  if (want_values && !on_chip)
    clear(values_parts.data_ptr(), values_parts.numel() * bytes_of(sum_type), current.stream);
  if (in_order) add_in_order(problem, device, forced, current.stream, grad_output, values_parts);
  with_launches(problem, [&](auto launches) {
    if (planes)
      launches.backward_planes(call_of_planes.problem, plan_of_planes, current.stream,
                               *rows_of(grad_output, batch_axes), grad_output.data_ptr(),
                               target(values_parts, planes_of_values),
                               target(coords_parts, planes_of_coords));
    if (values_by_rows || coords_by_rows)
      launches.backward(problem, plan, current.stream, grad_output.data_ptr(),
                        target(values_parts, values_by_rows), target(coords_parts, coords_by_rows));
    if (want_values && values_parts.data_ptr() != grad_values.data_ptr())
      launches.sum_values(current.stream, values_parts.data_ptr(), value_parts, grad_values.numel(),
                          columns_of_sums(device, value_parts, grad_values.numel(), forced),
                          grad_values.data_ptr());
  });
  if (want_coords && coords_parts.data_ptr() != grad_coords.data_ptr())
    with_coord_and_sum(problem, [&](auto coord, auto sum) {
      launch_sum<decltype(coord), decltype(sum)>(
          coords_parts.data_ptr(), coord_parts, grad_coords.numel(),
          columns_of_sums(device, coord_parts, grad_coords.numel(), forced), current.stream,
          grad_coords.data_ptr());
    });
  if (channels_first && !planes_of_values) {
    Tensor copy = new_grad_values(true);
    torch::stable::copy_(copy, grad_values);
    return {copy, grad_coords};
  }
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
