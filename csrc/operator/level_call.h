// A call of the operators of several levels: grids of different sizes, packed one behind the other
// into one tensor, and sampled at the same points.
#pragma once

#include <cstddef>

#include "call.h"

namespace crad {

// With its tensors kept alive, and a Problem for each level. The values are dense, and so are the
// coordinates.
class LevelsCall {
 public:
  LevelsCall(DeviceType device, const Tensor& values, const Tensor& coords,
             const std::optional<Tensor>& seed, const std::optional<Tensor>& jitter_std,
             const std::vector<int64_t>& sizes, int64_t options)
      : values_(dense(values)),
        finest_(device, finest_level(values_, coords, sizes), dense(coords), seed, jitter_std,
                options) {
    const Problem& problem = finest_.problem;
    const int ndim = problem.ndim;
    STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float &&
                        coords.scalar_type() == ScalarType::Float && ndim <= kMostLevelAxes &&
                        problem.channels <= kMostLevelChannels && problem.mode == Mode::linear &&
                        !problem.simplex && problem.derivative == 0 &&
                        problem.unit == Unit::normalized,
                    "sample_levels(): expected a linear sample of float32 with 1 to 4 components "
                    "and 1 to 8 channels");
    for (int axis = 0; axis < ndim; ++axis)
      STD_TORCH_CHECK(problem.padding[axis] != Padding::circular,
                      "sample_levels(): unexpected padding");
    const float* at = static_cast<const float*>(values_.data_ptr());
    for (size_t i = 0; i < sizes.size(); i += ndim) {
      Problem level = problem;
      level.entries = 1;
      for (int axis = 0; axis < ndim; ++axis) {
        level.size[axis] = sizes[i + axis];
        level.entries *= level.size[axis];
      }
      STD_TORCH_CHECK(level.entries * problem.channels <= kMostElements,
                      "sample_levels(): expected a level of 2^30 elements at most");
      set_dense(level, problem.channels);
      level.values = at + entries_ * problem.channels;
      entries_ += level.entries;
      levels_.push_back(level);
    }
  }

  const std::vector<Problem>& levels() const { return levels_; }
  const Problem& level(int64_t i) const { return levels_[i]; }
  int64_t number() const { return static_cast<int64_t>(levels_.size()); }
  int64_t entries() const { return entries_; }
  int64_t channels() const { return finest_.problem.channels; }
  int64_t points() const { return finest_.points; }
  bool empty() const { return points() == 0 || channels() == 0; }

  const Tensor& values() const { return values_; }
  // The level with the most entries.
  const Call& finest() const { return finest_; }

  std::vector<int64_t> output_shape() const {
    std::vector<int64_t> shape(finest_.coords.sizes().begin(), finest_.coords.sizes().end());
    shape.back() = number() * channels();
    return shape;
  }

  // Raises unless this is the gradient of an output.
  void check(const Tensor& grad_output) const {
    STD_TORCH_CHECK(is_gradient(grad_output, output_shape(), values_),
                    "sample_levels_backward(): expected grad_output of the shape of the sample, "
                    "with the dtype and device of values");
  }

 private:
  static constexpr int64_t kMostElements = 1 << 30;  // whose offsets are of 32 bits

  // The level with the most entries, as values of a sample.
  static Tensor finest_level(Tensor& values, const Tensor& coords,
                             const std::vector<int64_t>& sizes) {
    STD_TORCH_CHECK(values.dim() == 2 && coords.dim() >= 1 && coords.size(coords.dim() - 1) >= 1,
                    "sample_levels(): expected values of two axes, and coords of one or more");
    const size_t ndim = coords.size(coords.dim() - 1);
    STD_TORCH_CHECK(!sizes.empty() && sizes.size() % ndim == 0 && ndim <= size_t{kMostLevelAxes},
                    "sample_levels(): expected a number of entries along each axis of each level");
    int64_t begin = 0, before = 0, most = 0;
    std::vector<int64_t> shape;
    for (size_t i = 0; i < sizes.size(); i += ndim) {
      int64_t entries = 1;
      for (size_t axis = i; axis < i + ndim; ++axis)
        STD_TORCH_CHECK(sizes[axis] >= 2 && sizes[axis] <= kExactSize &&
                            !__builtin_mul_overflow(entries, sizes[axis], &entries) &&
                            entries <= values.size(0) - before,
                        "sample_levels(): expected values to have the entries of all levels");
      if (entries > most) {
        begin = before;
        most = entries;
        shape.assign(sizes.begin() + i, sizes.begin() + i + ndim);
      }
      before += entries;
    }
    STD_TORCH_CHECK(before == values.size(0),
                    "sample_levels(): expected values to have the entries of all levels");
    shape.push_back(values.size(1));
    return torch::stable::view(torch::stable::narrow(values, 0, begin, most), shape);
  }

  Tensor values_;
  const Call finest_;
  int64_t entries_ = 0;  // of all levels
  std::vector<Problem> levels_;
};

}  // namespace crad
