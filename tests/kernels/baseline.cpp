// Prints what the baseline CPU kernels compute, for .ci/compilers to compare between processors:
// exact integers and sums in a fixed order, so it is the same on all.
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace {

uint32_t state = 1;

float next_number() {  // in [-1.25, 1.25), some of it out of bounds
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) * 0x1p-24f * 2.5f - 1.25f;
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> result(count);
  for (float& number : result) number = next_number();
  return result;
}

void print(const char* name, const std::vector<float>& numbers) {
  uint64_t bits = 14695981039346656037u;  // FNV-1a
  double sum = 0;
  for (const float& number : numbers) {
    for (size_t byte = 0; byte < sizeof(number); ++byte)
      bits = (bits ^ reinterpret_cast<const unsigned char*>(&number)[byte]) * 1099511628211u;
    sum += number;
  }
  std::printf(" %s %016llx %.9g", name, static_cast<unsigned long long>(bits), sum);
}

void run(int ndim, crad::Mode mode, crad::Padding padding, int64_t channels, bool point_lanes) {
  constexpr int64_t kPoints = 37;
  crad::Problem problem{};
  problem.value_type = crad::ValueType::float32;
  problem.coord_type = crad::CoordType::float32;
  problem.ndim = ndim;
  problem.entries = 1;
  for (int axis = 0; axis < ndim; ++axis) problem.entries *= problem.size[axis] = 5 - axis;
  problem.channels = channels;
  crad::set_dense(problem, channels);
  problem.grids = 1;
  problem.points_per_grid = kPoints;
  problem.point_lanes = point_lanes;
  problem.mode = mode;
  for (int axis = 0; axis < ndim; ++axis) problem.padding[axis] = padding;
  const std::vector<float> values = numbers(problem.entries * channels);
  const std::vector<float> coords = numbers(kPoints * ndim);
  const std::vector<float> jitter_std(ndim, 0.1f), grad_output = numbers(kPoints * channels);
  const int64_t seed = 7;
  problem.values = values.data();
  problem.coords = coords.data();
  problem.seed = &seed;
  problem.jitter_std = jitter_std.data();

  std::vector<float> out(kPoints * channels), grad_values(values.size()),
      grad_coords(coords.size());
  const crad::Range range{0, kPoints, 0, channels};
  crad::Output output{};
  output.data = out.data();
  output.row = channels;
  crad::kernels_baseline.forward(problem, range, output);
  crad::Gradients gradients{};
  gradients.grad_output = grad_output.data();
  gradients.grad_values = grad_values.data();
  gradients.grad_coords = grad_coords.data();
  crad::kernels_baseline.backward(problem, range, gradients);
  std::printf("%d %d %d %d %d", ndim, static_cast<int>(mode), static_cast<int>(padding),
              static_cast<int>(channels), point_lanes);
  print("out", out);
  print("grad_values", grad_values);
  print("grad_coords", grad_coords);
  std::printf("\n");
}

}  // namespace

int main() {
  for (int ndim = 1; ndim <= 3; ++ndim)
    for (crad::Mode mode : {crad::Mode::nearest, crad::Mode::linear, crad::Mode::cubic})
      for (crad::Padding padding : {crad::Padding::zeros, crad::Padding::border,
                                    crad::Padding::reflection, crad::Padding::circular})
        for (int64_t channels : {3, 21})
          for (bool point_lanes : {false, true})
            if (!point_lanes || mode != crad::Mode::cubic || ndim <= 2)
              run(ndim, mode, padding, channels, point_lanes);
}
