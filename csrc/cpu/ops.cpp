// The operators of the CPU backend: tensors in and out, on the LibTorch stable ABI. Arguments have
// been checked in Python; what is checked here is what memory safety needs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/axis.h"
#include "../core/jitter.h"
#include "kernels.h"
#include "plan.h"
#include "recycler.h"

namespace crad {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels of the best instruction set of this processor, or of the one that the environment
// variable CRAD_KERNELS_CPU_ISA names.
const Kernels& choose_kernels() {
  struct Choice {
    const char* name;
    bool supported;
    const Kernels& kernels;
  };
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
#endif
  const Choice choices[] = {
#if defined(__x86_64__)
      {"avx512", avx512, kernels_avx512},
      {"avx2", avx2, kernels_avx2},
#endif
      {"baseline", true, kernels_baseline},
  };
  const char* wanted = std::getenv("CRAD_KERNELS_CPU_ISA");
  for (const Choice& choice : choices)
    if (choice.supported && (!wanted || !*wanted || std::strcmp(wanted, choice.name) == 0))
      return choice.kernels;
  STD_TORCH_CHECK(
      false, "CRAD_KERNELS_CPU_ISA is '", wanted,
      "', which this processor does not have; use avx512, avx2 or baseline, or unset it");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

ValueType value_type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return ValueType::float64;
    case ScalarType::Float:
      return ValueType::float32;
    case ScalarType::BFloat16:
      return ValueType::bfloat16;
    case ScalarType::Half:
      return ValueType::float16;
    default:
      STD_TORCH_CHECK(false, "sample(): unexpected dtype of values");
  }
}

int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Long:
    case ScalarType::Double:
      return 8;
    case ScalarType::Float:
      return 4;
    default:
      return 2;
  }
}

CoordType coord_type_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float,
                  "sample(): unexpected dtype of coords");
  return type == ScalarType::Double ? CoordType::float64 : CoordType::float32;
}

// A call with its tensors, contiguous and kept alive.
struct Call {
  Tensor values, coords;
  std::optional<Tensor> seed, jitter_std;
  Problem problem;
  int64_t grids, points;

  Call(const Tensor& values_in, const Tensor& coords_in, const std::optional<Tensor>& seed_in,
       const std::optional<Tensor>& jitter_std_in, int64_t mode, int64_t padding,
       bool align_corners, int64_t derivative)
      : values(dense(values_in)), coords(dense(coords_in)), problem{} {
    STD_TORCH_CHECK(values.is_cpu() && coords.is_cpu(), "sample(): expected tensors on the CPU");
    STD_TORCH_CHECK(coords.dim() >= 1, "sample(): expected coords to have an axis");
    const int64_t ndim = coords.size(coords.dim() - 1);
    STD_TORCH_CHECK(ndim >= 1 && ndim <= 8, "sample(): expected 1 to 8 coordinate components");
    const bool batched = values.dim() == ndim + 2;
    STD_TORCH_CHECK(batched || values.dim() == ndim + 1,
                    "sample(): values and coords do not fit together");
    problem.value_type = value_type_of(values);
    problem.coord_type = coord_type_of(coords);
    problem.values = values.data_ptr();
    problem.coords = coords.data_ptr();
    problem.ndim = static_cast<int>(ndim);
    problem.entries = 1;
    for (int64_t axis = 0; axis < ndim; ++axis) {
      problem.size[axis] = values.size(axis + batched);
      problem.entries *= problem.size[axis];
    }
    STD_TORCH_CHECK(problem.entries > 0, "sample(): expected values to have an entry");
    problem.channels = values.size(values.dim() - 1);
    grids = batched ? values.size(0) : 1;
    points = coords.numel() / ndim;
    STD_TORCH_CHECK(!batched || (coords.dim() >= 2 && coords.size(0) == grids),
                    "sample(): values and coords do not have the same batch size");
    problem.points_per_grid = grids > 0 ? points / grids : 0;
    STD_TORCH_CHECK(is_mode(mode) && is_padding(padding),
                    "sample(): unexpected mode or padding mode");
    problem.mode = mode;
    problem.padding = padding;
    problem.align_corners = align_corners;
    problem.derivative = derivative;
    if (seed_in && jitter_std_in) {
      seed = dense(*seed_in);
      jitter_std = dense(*jitter_std_in);
      STD_TORCH_CHECK(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long &&
                          seed->is_cpu() && jitter_std->numel() == ndim &&
                          jitter_std->scalar_type() == coords.scalar_type() && jitter_std->is_cpu(),
                      "sample(): unexpected seed or jitter_std");
      problem.seed = static_cast<const int64_t*>(seed->data_ptr());
      problem.jitter_std = jitter_std->data_ptr();
    }
  }

  bool empty() const { return points == 0 || problem.channels == 0; }

  std::vector<int64_t> output_shape() const {
    std::vector<int64_t> shape(coords.sizes().begin(), coords.sizes().end());
    shape.back() = problem.channels;
    return shape;
  }
};

// Calls f(grid, tile, chunk) for every range of the plan, in parallel if there is enough to do; the
// chunks of a tile lie next to each other, so that a thread stays with one tile of the grid.
template <class F>
void for_each_range(const Plan& plan, int64_t grids, int64_t elements, F f) {
  constexpr int64_t kSerial = 32 * 1024;
  const int64_t ranges = grids * plan.tiles * plan.chunks;
  auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      f(i / (plan.tiles * plan.chunks), i / plan.chunks % plan.tiles, i % plan.chunks);
  };
  if (elements < kSerial || ranges == 1)
    run(0, ranges);
  else
    torch::stable::parallel_for(0, ranges, 1, run);
}

template <class F>
void for_each_block(int64_t elements, F f) {
  torch::stable::parallel_for(0, elements, 32 * 1024, f);
}

Tensor empty(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  int64_t bytes = bytes_of(type);
  for (const int64_t length : shape) bytes *= length;
  if (bytes < Recycler::kSmallest) return torch::stable::new_empty(like, shape, type);
  void* const memory = Recycler::instance().take(bytes);
  STD_TORCH_CHECK(memory, "sample(): not enough memory for a result of ", bytes, " bytes");
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t axis = shape.size() - 1; axis > 0; --axis)
    strides[axis - 1] = strides[axis] * shape[axis];
  return torch::stable::from_blob(
      memory, shape, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
      [bytes](void* data) { Recycler::instance().give_back(data, bytes); });
}

Tensor sample(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
              const std::optional<Tensor>& jitter_std, int64_t mode, int64_t padding,
              bool align_corners, bool /*deterministic: always*/, int64_t derivative) {
  constexpr int64_t kLarge = 16 << 20;  // bytes
  Call call(values, coords, seed, jitter_std, mode, padding, align_corners, derivative);
  Tensor output = empty(values, call.output_shape(), values.scalar_type());
  if (call.empty()) return output;
  call.problem.large_output = output.numel() * bytes_of(values.scalar_type()) >= kLarge;
  void* to = output.data_ptr();
  const Plan plan = forward_plan(call.problem);
  for_each_range(plan, call.grids, call.points * call.problem.channels,
                 [&](int64_t grid, int64_t tile, int64_t chunk) {
                   kernels().forward(call.problem, plan.range(grid, tile, chunk, call.problem), to);
                 });
  return output;
}

// Where the ranges of a backward pass put their results: `parts` arrays that are summed at the end,
// or the result itself where one part of its type is all there is.
struct Parts {
  Tensor storage;
  int64_t number, stride, element;  // `element` in bytes, `stride` in elements
  bool summed;

  Parts(const Tensor& result, int64_t number, ScalarType type)
      : storage(result),
        number(number),
        stride(result.numel()),
        element(bytes_of(type)),
        summed(number > 1 || type != result.scalar_type()) {
    if (summed) storage = empty(result, {number, stride}, type);
  }

  char* part(int64_t index) const {
    return static_cast<char*>(storage.data_ptr()) + index * stride * element;
  }
};

// Zeroes a range's channels of every entry of a grid.
void clear(char* grid, const Problem& problem, const Range& range, int64_t element) {
  const int64_t bytes = (range.channel_end - range.channel_begin) * element;
  for (int64_t entry = 0; entry < problem.entries; ++entry)
    std::memset(grid + (entry * problem.channels + range.channel_begin) * element, 0, bytes);
}

// The gradients of sum(grad_output * sample(values, coords)) with respect to values and coords; an
// empty tensor for the one that is not wanted.
std::tuple<Tensor, Tensor> sample_backward(const Tensor& grad_output_in, const Tensor& values,
                                           const Tensor& coords, const std::optional<Tensor>& seed,
                                           const std::optional<Tensor>& jitter_std, int64_t mode,
                                           int64_t padding, bool align_corners,
                                           bool /*deterministic: always*/, int64_t derivative,
                                           bool want_values, bool want_coords) {
  const Call call(values, coords, seed, jitter_std, mode, padding, align_corners, derivative);
  const Problem& problem = call.problem;
  const Tensor grad_output = dense(grad_output_in);
  STD_TORCH_CHECK(grad_output.is_cpu() && grad_output.scalar_type() == values.scalar_type() &&
                      grad_output.numel() == call.points * problem.channels,
                  "sample_backward(): grad_output does not fit values and coords");
  auto empty_like = [](const Tensor& tensor, bool wanted) {
    std::vector<int64_t> shape = {0};
    if (wanted) shape.assign(tensor.sizes().begin(), tensor.sizes().end());
    return empty(tensor, shape, tensor.scalar_type());
  };
  Tensor grad_values = empty_like(values, want_values);
  Tensor grad_coords = empty_like(coords, want_coords);
  if (call.empty()) {
    torch::stable::zero_(grad_values);
    torch::stable::zero_(grad_coords);
    return {grad_values, grad_coords};
  }

  const Plan plan = backward_plan(problem, call.grids);
  const bool wide = problem.value_type == ValueType::float64;
  const Parts value_parts(grad_values, plan.chunks, wide ? ScalarType::Double : ScalarType::Float);
  const Parts coord_parts(grad_coords, plan.tiles, coords.scalar_type());
  for_each_range(plan, call.grids, call.points * problem.channels,
                 [&](int64_t grid, int64_t tile, int64_t chunk) {
                   const Range range = plan.range(grid, tile, chunk, problem);
                   Gradients gradients{grad_output.data_ptr(), nullptr, nullptr};
                   if (want_values) {
                     char* part = value_parts.part(chunk) +
                                  grid * problem.entries * problem.channels * value_parts.element;
                     clear(part, problem, range, value_parts.element);
                     gradients.grad_values = part;
                   }
                   if (want_coords) gradients.grad_coords = coord_parts.part(tile);
                   kernels().backward(problem, range, gradients);
                 });
  if (want_values && value_parts.summed)
    for_each_block(value_parts.stride, [&](int64_t begin, int64_t end) {
      kernels().sum_values(problem.value_type, value_parts.part(0), value_parts.number,
                           value_parts.stride, grad_values.data_ptr(), begin, end);
    });
  if (want_coords && coord_parts.summed)
    for_each_block(coord_parts.stride, [&](int64_t begin, int64_t end) {
      kernels().sum_coords(problem.coord_type, coord_parts.part(0), coord_parts.number,
                           coord_parts.stride, grad_coords.data_ptr(), begin, end);
    });
  return {grad_values, grad_coords};
}

// The generator and the normals of the jitter by themselves, as crad_kernels/backends/reference.py
// defines them.
Tensor philox_words(const Tensor& counter_in, const Tensor& key_in) {
  const Tensor counter = dense(counter_in), key = dense(key_in);
  STD_TORCH_CHECK(counter.dim() == 2 && counter.size(1) == 4 && key.dim() == 2 &&
                      key.size(1) == 2 && key.size(0) == counter.size(0) &&
                      counter.scalar_type() == ScalarType::Long &&
                      key.scalar_type() == ScalarType::Long && counter.is_cpu() && key.is_cpu(),
                  "philox(): expected int64 counter (N, 4) and key (N, 2) on the CPU");
  Tensor words = empty(counter, {counter.size(0), 4}, ScalarType::Long);
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
  STD_TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long && seed.is_cpu(),
                  "normals(): expected an int64 seed on the CPU");
  STD_TORCH_CHECK(points >= 0 && ndim >= 0 && ndim <= 8,
                  "normals(): expected a number of points and at most 8 components");
  Tensor result = empty(seed, {points, ndim}, ScalarType::Float);
  const uint64_t key = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  float* to = static_cast<float*>(result.data_ptr());
  torch::stable::parallel_for(0, points, 4096, [&](int64_t begin, int64_t end) {
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
  library.impl("sample.cpu", TORCH_BOX(&crad::sample));
  library.impl("sample_backward.cpu", TORCH_BOX(&crad::sample_backward));
  library.impl("philox.cpu", TORCH_BOX(&crad::philox_words));
  library.impl("normals.cpu", TORCH_BOX(&crad::normals));
}
