// Prints the plans of calls, a line for each line of standard input: see test_cuda_plans.py.
#include <iostream>
#include <string>

#include "../../csrc/cuda/plan.h"

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
    Problem problem{};
    int value_type, coord_type, mode;
    bool want_values, want_coords;
    std::cin >> value_type >> coord_type >> mode >> problem.grids >> problem.points_per_grid >>
        problem.channels >> want_values >> want_coords >> problem.ndim;
    problem.value_type = static_cast<ValueType>(value_type);
    problem.coord_type = static_cast<CoordType>(coord_type);
    problem.mode = static_cast<Mode>(mode);
    problem.entries = 1;
    for (int axis = 0; axis < problem.ndim; ++axis) {
      std::cin >> problem.size[axis];
      problem.entries *= problem.size[axis];
    }
    const Plan plan = pass == "forward"
                          ? plan_forward(problem, device)
                          : plan_backward(problem, device, nullptr, want_values, want_coords);
    std::cout << (plan.family != Family::in_memory) << ' ' << plan.vector << ' '
              << plan.tile_channels << ' ' << plan.tiles << ' ' << plan.chunk_points << ' '
              << plan.chunks << ' ' << plan.batch << ' ' << plan.lanes << ' ' << plan.threads << ' '
              << plan.shared << ' ' << (plan.family == Family::by_cell) << '\n';
  }
}
