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

// Calls f with the number of axes and the channels that a thread moves at once.
template <class F>
void with_level_shape(const Problem& problem, int vector, F f) {
  const auto with_axes = [&](auto channels) {
    switch (problem.ndim) {
      case 1:
        return f(std::integral_constant<int, 1>(), channels);
      case 2:
        return f(std::integral_constant<int, 2>(), channels);
      case 3:
        return f(std::integral_constant<int, 3>(), channels);
      default:
        static_assert(kMostLevelAxes == 4);
        return f(std::integral_constant<int, 4>(), channels);
    }
  };
  vector == 4   ? with_axes(std::integral_constant<int, 4>())
  : vector == 2 ? with_axes(std::integral_constant<int, 2>())
                : with_axes(std::integral_constant<int, 1>());
}

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }
float* new_floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

Tensor sample_levels(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
                     const std::optional<Tensor>& jitter_std, const std::vector<int64_t>& sizes,
                     int64_t options) {
  const Current current(values);
  const LevelsCall call(kDevice, values, coords, seed, jitter_std, sizes, options);
  const LevelTable table = table_of(call);
  const Tensor output = torch::stable::new_empty(values, call.output_shape());
  if (call.empty()) return output;
  const Problem& problem = call.finest().problem;
  const LevelPlan plan =
      plan_levels(call.points(), call.number(), call.channels(), current_device());
  const float* const from = floats(call.values());
  float* const to = new_floats(output);
  with_level_shape(problem, level_vector(call.channels(), {from, to}), [&](auto axes, auto vector) {
    launch(sample_of_levels<decltype(axes)::value, decltype(vector)::value>, plan.blocks,
           plan.threads, 0, current.stream, problem, table, plan.lanes, from, to);
  });
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
  const LevelTable table = table_of(call);
  Tensor grad_values = torch::stable::new_empty(values, gradient_shape(values, want_values));
  Tensor grad_coords = torch::stable::new_empty(coords, gradient_shape(coords, want_coords));
  if (call.empty() || !(want_values || want_coords))
    return {torch::stable::zero_(grad_values), torch::stable::zero_(grad_coords)};
  const Tensor grad_output = dense(grad_output_in);
  const float *const from = floats(call.values()), *const grads = floats(grad_output);
  float* const to_values = want_values ? new_floats(grad_values) : nullptr;
  float* const to_coords = want_coords ? new_floats(grad_coords) : nullptr;
  if (want_values) clear(to_values, grad_values.numel() * sizeof(float), current.stream);
  const Problem& problem = call.finest().problem;
  const LevelPlan plan =
      plan_levels(call.points(), call.number(), call.channels(), current_device());
  const int vector = level_vector(call.channels(), {from, grads, to_values});
  with_level_shape(problem, vector, [&](auto axes, auto vector) {
    launch(backward_of_levels<decltype(axes)::value, decltype(vector)::value>, plan.blocks,
           plan.threads, 0, current.stream, problem, table, plan.lanes, from, grads, to_values,
           to_coords);
  });
  return {grad_values, grad_coords};
}

}  // namespace
}  // namespace crad

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CRAD_DISPATCH_KEY, library) {
  library.impl("sample_levels.cuda", TORCH_BOX(&crad::sample_levels));
  library.impl("sample_levels_backward.cuda", TORCH_BOX(&crad::sample_levels_backward));
}
