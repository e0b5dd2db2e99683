// Prints the plans of calls, a line for each line of standard input: see test_cuda_plans.py.
#include <iostream>
#include <string>

#include "../../csrc/cuda/plan_backward.h"
#include "../../csrc/cuda/plan_in_order.h"
#include "../../csrc/cuda/plan_levels.h"

int main() {
  using namespace crad;
  std::string pass;
  while (std::cin >> pass) {
    Device device;
    std::cin >> device.multiprocessors >> device.shared_bytes >> device.block_reserve >>
        device.block_bytes >> device.threads;
    if (pass == "sums") {
      int64_t number, count;
      std::cin >> number >> count;
      std::cout << columns_of_sums(device, number, count) << '\n';
      continue;
    }
    if (pass == "levels") {
      int64_t points, levels, channels;
      std::cin >> points >> levels >> channels;
      const LevelPlan plan = plan_levels(points, levels, channels, device);
      std::cout << plan.lanes << ' ' << plan.threads << ' ' << plan.blocks << '\n';
      continue;
    }
    Problem problem{};
    int value_type, coord_type, mode;
    bool want_values, want_coords;
    std::cin >> value_type >> coord_type >> mode >> problem.grids >> problem.points_per_grid >>
        problem.channels >> want_values >> want_coords >> problem.ndim;
    problem.value_type = static_cast<ValueType>(value_type);
    problem.coord_type = static_cast<CoordType>(coord_type);
    problem.simplex = mode == kSimplex && problem.ndim > 1;
    problem.mode = mode == kSimplex ? Mode::linear : static_cast<Mode>(mode);
    problem.entries = 1;
    for (int axis = 0; axis < problem.ndim; ++axis) {
      std::cin >> problem.size[axis];
      problem.entries *= problem.size[axis];
    }
    set_dense(problem, problem.channels);
    if (pass == "planes" || pass == "backward_planes") {
      problem.channel_stride = problem.entries;
      for (int axis = 0; axis < problem.ndim; ++axis) problem.stride[axis] /= problem.channels;
    }
    if (pass == "order") {
      Order order{};
      const Plan plan = plan_in_order(problem, device, nullptr, order);
      const Plan of_keys = plan_keys(problem, device, order);
      std::cout << order.corners << ' ' << order.items << ' ' << order.wide() << ' ' << order.piece
                << ' ' << order.together << ' ' << plan.batch << ' ' << plan.threads << ' '
                << plan.shared << ' ' << of_keys.threads << ' ' << of_keys.shared << '\n';
      continue;
    }
    const Plan plan =
        pass == "backward" ? plan_backward(problem, device, nullptr, want_values, want_coords)
        : pass == "backward_planes" ? plan_backward_planes(problem, device, want_coords)
                                    : plan_forward(problem, device);
    std::cout << static_cast<int>(plan.family) << ' ' << plan.vector << ' ' << plan.tile_channels
              << ' ' << plan.tiles << ' ' << plan.chunk_points << ' ' << plan.chunks << ' '
              << plan.batch << ' ' << plan.lanes << ' ' << plan.threads << ' ' << plan.shared
              << '\n';
  }
}
