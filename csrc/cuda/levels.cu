// The operators sample_levels and sample_levels_backward of the CUDA backend: several grids of
// different sizes, packed one behind the other into one tensor, sampled at the same points.
//
// A sample is one launch, and so are both gradients (levels.h). What the operators do not take,
// such as a deterministic gradient of the values, is composed of samples: see
// crad_kernels/_level_operators.py.
#include <tuple>

#include "../operator/level_call.h"
#include "current.h"
#include "levels.h"

namespace crad {
namespace {

LevelTable table_of(const LevelsCall& call) {
  STD_TORCH_CHECK(call.number() <= kMostLevels, "sample_levels(): expected 32 levels at most");
  LevelTable table{};
  table.number = static_cast<int>(call.number());
  int64_t first = 0;
  for (int level = 0; level < table.number; ++level) {
    const Problem& problem = call.level(level);
    for (int axis = 0; axis < problem.ndim; ++axis)
      table.size[level][axis] = static_cast<int32_t>(problem.size[axis]);
    table.first[level] = first;
    first += problem.entries;
  }
  return table;
}

// The channels that a thread moves at once, 4 at most.
int level_vector(int64_t channels, std::initializer_list<const void*> memory) {
  int vector = 4;
  const auto fits = [&](const void* at) {
    return reinterpret_cast<uintptr_t>(at) % (vector * sizeof(float)) == 0;
  };
  while (vector > 1 && (channels % vector != 0 || !std::all_of(memory.begin(), memory.end(), fits)))
    vector /= 2;
  return vector;
}

// Launches kernel(axes, vector), which is compiled for the number of axes and the channels that a
// thread moves at once, on the values and other memory. Null: not wanted.
template <class F, class... Memory>
void launch_levels(const LevelsCall& call, Stream stream, F kernel, Memory*... memory) {
  const Problem& problem = call.finest().problem;
  const LevelTable table = table_of(call);
  const LevelPlan plan =
      plan_levels(call.points(), call.number(), call.channels(), current_device());
  const int vector = level_vector(call.channels(), {memory...});
  static_assert(kMostLevelAxes == 4, "those of with_small");
  with_small(problem.ndim, [&](auto axes) {
    const auto run = [&](auto channels) {
      launch(kernel(axes, channels), plan.blocks, plan.threads, 0, stream, problem, table,
             plan.lanes, memory...);
    };
    vector == 4   ? run(std::integral_constant<int, 4>())
    : vector == 2 ? run(std::integral_constant<int, 2>())
                  : run(std::integral_constant<int, 1>());
  });
}

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }
float* new_floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

Tensor sample_levels(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
                     const std::optional<Tensor>& jitter_std, const std::vector<int64_t>& sizes,
                     int64_t options) {
  const Current current(values);
  const LevelsCall call(kDevice, values, coords, seed, jitter_std, sizes, options);
  const Tensor output = torch::stable::new_empty(values, call.output_shape());
  if (call.empty()) return output;
  const auto kernel = [](auto axes, auto vector) {
    return sample_of_levels<decltype(axes)::value, decltype(vector)::value>;
  };
  launch_levels(call, current.stream, kernel, floats(call.values()), new_floats(output));
  return output;
}

// The gradients of sum(grad_output * sample_levels(values, coords)) with respect to values and
// coords; an empty tensor for the one that is not wanted.
std::tuple<Tensor, Tensor> sample_levels_backward(
    const Tensor& grad_output_in, const Tensor& values, const Tensor& coords,
    const std::optional<Tensor>& seed, const std::optional<Tensor>& jitter_std,
    const std::vector<int64_t>& sizes, int64_t options, bool want_values, bool want_coords) {
  const Current current(values);
  const LevelsCall call(kDevice, values, coords, seed, jitter_std, sizes, options);
  call.check(grad_output_in);
  STD_TORCH_CHECK(!(want_values && call.finest().deterministic),
                  "sample_levels_backward(): expected no deterministic gradient of values");
  Tensor grad_values = torch::stable::new_empty(values, gradient_shape(values, want_values));
  Tensor grad_coords = torch::stable::new_empty(coords, gradient_shape(coords, want_coords));
  if (call.empty() || !(want_values || want_coords))
    return {torch::stable::zero_(grad_values), torch::stable::zero_(grad_coords)};
  const Tensor grad_output = dense(grad_output_in);
  float* const to_values = want_values ? new_floats(grad_values) : nullptr;
  float* const to_coords = want_coords ? new_floats(grad_coords) : nullptr;
  if (want_values) clear(to_values, grad_values.numel() * sizeof(float), current.stream);
  const auto kernel = [](auto axes, auto vector) {
    return backward_of_levels<decltype(axes)::value, decltype(vector)::value>;
  };
  launch_levels(call, current.stream, kernel, floats(call.values()), floats(grad_output), to_values,
                to_coords);
  return {grad_values, grad_coords};
}

}  // namespace
}  // namespace crad

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CRAD_DISPATCH_KEY, library) {
  library.impl("sample_levels.cuda", TORCH_BOX(&crad::sample_levels));
  library.impl("sample_levels_backward.cuda", TORCH_BOX(&crad::sample_levels_backward));
}
