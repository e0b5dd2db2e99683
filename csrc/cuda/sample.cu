// The operators of the CUDA backend, of one grid. Nothing here waits for the device, so a CUDA
// graph can capture it.
//
// The way of `coords`: sample() or sample_backward() below checks them (operator/call.h) and
// describes them in a Problem (core/problem.h). plan_forward.h or plan_backward.h chooses a kernel
// (by what, it says at its top) and cuts the work into blocks; launches_impl.h chooses the compiled
// variant of the kernel. In the kernel (forward.h, backward_*.h, planes.h) a block locates a batch
// of its points, one a thread, by corners.h: core/jitter.h moves a coordinate, core/axis.h turns it
// into taps, and their products are the corners, kept in shared memory. Then all threads of the
// block read the corners and move channels, as vectors of vector.h. sums.h adds up the partial sums
// of blocks.
#include <algorithm>
#include <array>
#include <tuple>

#include "../operator/call.h"
#include "backward_in_order.h"
#include "current.h"
#include "forced.h"
#include "launches.h"
#include "layout.h"
#include "plan_backward.h"
#include "plan_in_order.h"
#include "sums.h"

namespace crad {

// The jitter by itself: for those who compare backends, and for the gradient of a learnable jitter.
CRAD_KERNEL(kBlocks)
normals_of_points(const int64_t* seed, int64_t points, int ndim, float* normals) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= points) return;
  for (int d = 0; d < ndim; d += 4) {
    float normal[4];
    jitter_normals(static_cast<uint64_t>(*seed), p, d / 4, normal);
    CRAD_UNROLL
    for (int i = 0; i < 4; ++i)
      if (d + i < ndim) normals[p * ndim + d + i] = normal[i];
  }
}

namespace {

// Calls f with the launches for the type of the values.
template <class F>
void with_launches(const Problem& problem, F f) {
  with_value_type(problem.value_type, [&](auto number) { f(Launches<decltype(number)>()); });
}

// Where a call runs, and what CRAD_KERNELS_PLAN says of its plan.
struct Site {
  Stream stream;
  Device device = current_device();
  Forced forced = forced_plan();
};

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
  const Tensor output = new_laid_out_as(values, call.output_shape(), call.batch_axes);
  if (call.empty()) return output;
  const Site site{current.stream};
  const Plan plan = plan_forward(problem, site.device, site.forced);
  check_plan(plan, site.device);
  with_launches(problem, [&](auto launches) {
    launches.sample(problem, plan, site.stream, *point_strides_of(output, call.batch_axes),
                    output.data_ptr());
  });
  return output;
}

// A gradient and the partial sums that blocks leave of it, in the type that sums are taken in. One
// part of that type is the gradient itself.
struct PartialSums {
  Tensor gradient;  // empty: not wanted
  Tensor parts;
  int64_t number;

  PartialSums(const Tensor& gradient, const Problem& problem, int64_t number)
      : gradient(gradient), parts(gradient), number(number) {
    const ScalarType type = accumulator_of(problem.value_type);
    if (number > 1 || gradient.scalar_type() != type)
      parts = torch::stable::new_empty(gradient, {number * gradient.numel()}, type);
  }

  bool wanted() const { return gradient.numel() > 0; }
  void* data() const { return wanted() ? parts.data_ptr() : nullptr; }

  void set_zero(const Site& site) const {
    if (wanted()) clear(data(), parts.numel() * bytes_of(parts.scalar_type()), site.stream);
  }

  // Adds up the parts, once they are there.
  Tensor sum(const Site& site) const {
    if (!wanted() || data() == gradient.data_ptr()) return gradient;
    const int64_t count = gradient.numel();
    const int columns = columns_of_sums(site.device, number, count, site.forced);
    with_value_type(value_type_of(gradient), [&](auto to) {
      using To = decltype(to);
      const auto run = [&](auto part) {
        using A = decltype(part);
        launch(sum_parts<To, A>, ceil_div(count, columns), kThreads, kThreads * sizeof(A),
               site.stream, static_cast<const A*>(data()), number, count, columns,
               pointer<To>(gradient));
      };
      if constexpr (sizeof(To) >= sizeof(float))  // of coordinates, whatever the values
        if (parts.scalar_type() == ScalarType::Double) return run(double());
      run(float());
    });
    return gradient;
  }
};

// The sorted keys, and the numbers that they had before.
std::tuple<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}),
                                    from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Adds to `sums`, the zeroed gradient of the values, without atomic additions: see
// backward_in_order.h.
void add_in_order(const Problem& problem, const Site& site, const Tensor& grad_output,
                  const Tensor& sums) {
  Order order{};
  const Plan plan = plan_in_order(problem, site.device, grad_output.data_ptr(), order, site.forced);
  const Plan plan_of_keys = plan_keys(problem, site.device, order);
  const int64_t items = order.together * order.items;
  Tensor keys =
      torch::stable::new_empty(sums, {items}, order.wide() ? ScalarType::Long : ScalarType::Int);
  const Tensor rests = torch::stable::new_empty(
      sums, {ceil_div(items, order.piece), order.corners, problem.channels});
  for (int64_t first = 0; first < points_of(problem); first += order.together) {
    const int64_t count = std::min(order.together, points_of(problem) - first);
    launch(problem.coord_type == CoordType::float64 ? list_keys<double> : list_keys<float>,
           ceil_div(count, plan_of_keys.batch), plan_of_keys.threads, plan_of_keys.shared,
           site.stream, problem, plan_of_keys, order, first, count,
           Keys{keys.data_ptr(), order.wide()});
    const auto [sorted_keys, numbers] =
        stable_sort(torch::stable::narrow(keys, 0, 0, count * order.items));
    with_launches(problem, [&, &sorted_keys = sorted_keys, &numbers = numbers](auto launches) {
      launches.add_in_order(problem, plan, order, site.stream, first, count, sorted_keys.data_ptr(),
                            pointer<int64_t>(numbers), grad_output.data_ptr(), sums.data_ptr(),
                            rests.data_ptr());
    });
  }
}

// The gradients of sum(grad_output * sample(values, coords)) with respect to values and coords; an
// empty tensor for the one that is not wanted.
using GradValuesAndCoords = std::tuple<Tensor, Tensor>;

// The gradient of the values lies in memory as they do.
Tensor new_grad_values(const Call& call, bool wanted) {
  return wanted ? new_laid_out_as(call.values, gradient_shape(call.values, true), call.batch_axes)
                : torch::stable::new_empty(call.values, {0});
}
Tensor new_grad_coords(const Call& call, bool wanted) {
  return torch::stable::new_empty(call.coords, gradient_shape(call.coords, wanted));
}

// By the kernels that take dense rows of channels; what is not dense is copied.
GradValuesAndCoords backward_by_rows(Call& call, const Site& site, const Tensor& grad_output_in,
                                     bool want_values, bool want_coords) {
  const Tensor values = call.values, grad_output = dense(grad_output_in);
  call.set_contiguous(want_coords ? dense(values) : values, call.problem.channels);
  const Problem& problem = call.problem;
  const Plan plan = plan_backward(problem, site.device, grad_output.data_ptr(), want_values,
                                  want_coords, site.forced);
  check_plan(plan, site.device);
  const bool in_memory = plan.family == Family::in_memory;
  const bool in_order = in_memory && want_values && call.deterministic;
  const PartialSums to_values(torch::stable::new_empty(values, gradient_shape(values, want_values)),
                              problem, in_memory ? 1 : plan.chunks);
  const PartialSums to_coords(new_grad_coords(call, want_coords), problem, plan.tiles);
  if (in_memory) to_values.set_zero(site);
  if (in_order) add_in_order(problem, site, grad_output, to_values.parts);
  if (want_coords || !in_order)
    with_launches(problem, [&](auto launches) {
      launches.backward(problem, plan, site.stream, grad_output.data_ptr(),
                        in_order ? nullptr : to_values.data(), to_coords.data());
    });
  const Tensor grad_values = to_values.sum(site), grad_coords = to_coords.sum(site);
  if (!want_values || !is_channels_first(values, call.batch_axes))
    return {grad_values, grad_coords};
  Tensor copy = new_laid_out_as(values, gradient_shape(values, true), call.batch_axes);
  return {torch::stable::copy_(copy, grad_values), grad_coords};
}

// By backward_planes(): values are read, and their gradient is added to, where they lie.
GradValuesAndCoords backward_by_planes(Call& call, const Site& site, const Tensor& grad_output_in,
                                       bool want_values, bool want_coords) {
  const Tensor& values = call.values;
  const Tensor grad_output =
      point_strides_of(grad_output_in, call.batch_axes) ? grad_output_in : dense(grad_output_in);
  call.set_strided(values);
  const Problem& problem = call.problem;
  const Plan plan = plan_backward_planes(problem, site.device, want_coords, site.forced);
  check_plan(plan, site.device);
  const PartialSums to_values(new_grad_values(call, want_values), problem, 1);
  const PartialSums to_coords(new_grad_coords(call, want_coords), problem, plan.tiles * plan.lanes);
  to_values.set_zero(site);
  with_launches(problem, [&](auto launches) {
    launches.backward_planes(problem, plan, site.stream,
                             *point_strides_of(grad_output, call.batch_axes),
                             grad_output.data_ptr(), to_values.data(), to_coords.data());
  });
  return {to_values.sum(site), to_coords.sum(site)};
}

// A large grid that is not dense stays where it lies, unless the call is to be deterministic:
// backward_planes() adds atomically, to values that are channels first.
GradValuesAndCoords sample_backward(const Tensor& grad_output, const Tensor& values,
                                    const Tensor& coords, const std::optional<Tensor>& seed,
                                    const std::optional<Tensor>& jitter_std, int64_t options,
                                    bool want_values, bool want_coords) {
  const Current current(values);
  Call call(kDevice, values, dense(coords), seed, jitter_std, options);
  call.check(grad_output);
  const bool channels_first = is_channels_first(values, call.batch_axes);
  if (call.empty() || !(want_values || want_coords)) {
    Tensor grad_values = new_grad_values(call, want_values);
    Tensor grad_coords = new_grad_coords(call, want_coords);
    return {torch::stable::zero_(grad_values), torch::stable::zero_(grad_coords)};
  }
  const Site site{current.stream};
  const bool in_place =
      !values.is_contiguous() && !call.deterministic &&
      plan_backward(call.problem, site.device, nullptr, want_values, want_coords, site.forced)
              .family == Family::in_memory;
  const bool values_in_place = in_place && want_values && channels_first;
  const bool coords_in_place = in_place && want_coords;
  if (!values_in_place && !coords_in_place)
    return backward_by_rows(call, site, grad_output, want_values, want_coords);
  const auto [grad_values, grad_coords] =
      backward_by_planes(call, site, grad_output, values_in_place, coords_in_place);
  if (values_in_place == want_values) return {grad_values, grad_coords};
  return {std::get<0>(backward_by_rows(call, site, grad_output, true, false)), grad_coords};
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

#if !defined(CRAD_EMULATED)
// The oldest compute capability that this library was compiled for, times 100: 800.
extern "C" __attribute__((visibility("default"))) int crad_kernels_oldest_architecture() {
  return std::min({__CUDA_ARCH_LIST__});
}
#endif

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CRAD_DISPATCH_KEY, library) {
  library.impl("sample.cuda", TORCH_BOX(&crad::sample));
  library.impl("sample_backward.cuda", TORCH_BOX(&crad::sample_backward));
  library.impl("normals.cuda", TORCH_BOX(&crad::normals));
}
