// The operators sample_levels and sample_levels_backward: several grids of different sizes, packed
// one behind the other into one tensor, sampled at the same points.
//
// level_loops.h has the loops, compiled for each instruction set. What they do not do, such as
// other modes, is composed of samples: see crad_kernels/_level_operators.py.
#include "levels.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/numbers.h"
#include "../operator/call.h"
#include "empty.h"
#include "kernels.h"
#include "parallel.h"
#include "plan.h"
#include "sort.h"

namespace crad {
namespace {

// Those of the instruction set that `sample` runs on.
const LevelKernels& level_kernels() {
#if defined(__x86_64__)
  const Kernels* const chosen = &kernels();
  if (chosen == &kernels_avx512) return level_kernels_avx512;
  if (chosen == &kernels_avx2) return level_kernels_avx2;
#endif
  return level_kernels_baseline;
}

// A call with its tensors kept alive.
class LevelsCall {
 public:
  LevelsCall(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
             const std::optional<Tensor>& jitter_std, const std::vector<int64_t>& sizes,
             int64_t options)
      : values_(dense(values)),
        finest_(DeviceType::CPU, finest_level(values_, coords, sizes), dense(coords), seed,
                jitter_std, options) {
    const Problem& problem = finest_.problem;
    ndim_ = problem.ndim;
    STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float &&
                        coords.scalar_type() == ScalarType::Float && ndim_ <= kMostLevelAxes &&
                        problem.channels <= kMostLevelChannels && problem.mode == Mode::linear &&
                        !problem.simplex && problem.derivative == 0 &&
                        problem.unit == Unit::normalized,
                    "sample_levels(): expected a linear sample of float32 with 1 to 4 components "
                    "and 1 to 8 channels");
    for (int axis = 0; axis < ndim_; ++axis)
      STD_TORCH_CHECK(problem.padding[axis] != Padding::circular,
                      "sample_levels(): unexpected padding");
    const float* at = static_cast<const float*>(values_.data_ptr());
    for (size_t i = 0; i < sizes.size(); i += ndim_) {
      Problem level = problem;
      level.entries = 1;
      for (int axis = 0; axis < ndim_; ++axis) {
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

  Levels levels() const { return {levels_.data(), number()}; }
  const Problem& level(int64_t i) const { return levels_[i]; }
  int64_t number() const { return static_cast<int64_t>(levels_.size()); }
  int64_t entries() const { return entries_; }
  int64_t channels() const { return finest_.problem.channels; }
  int64_t points() const { return finest_.points; }
  const Tensor& coords() const { return finest_.coords; }

  Shape output_shape() const {
    Shape shape(coords().sizes().begin(), coords().sizes().end());
    shape.back() = number() * channels();
    return shape;
  }

  // Bytes that all points move in one level: what it takes to locate them, and their corners, each
  // so many times.
  int64_t bytes_of_level(int64_t times) const {
    constexpr int64_t kLocated = 16;
    return points() * (kLocated + (times * corners_of(finest_.problem) + 1) * channels() * 4);
  }

  // Whether the result is larger than the caches, and has rows that can be written past them.
  bool streams() const {
    constexpr int64_t kLarge = 16 * 1024 * 1024;  // bytes
    const int64_t row = number() * channels() * kForwardBytes;
    return points() * row >= kLarge && row % kLine == 0;
  }

  // Puts the points in an order in which they read near by, where that pays. It does not depend on
  // the number of threads, and so neither does any sum in this order.
  void sort() {
    constexpr int64_t kNear = 512 * 1024;  // bytes
    constexpr int64_t kFewest = 4096;      // points
    const Problem& problem = finest_.problem;
    if (entries_ * channels() * kForwardBytes <= kNear || points() < kFewest) return;
    if (ndim_ <= 3 && reads_near_by(problem)) return;
    // Cells of the finest level, cut along two axes.
    constexpr int64_t kMostParts = 4096, kPoints = 32;
    const int64_t parts = std::min(kMostParts, points() / kPoints);
    const auto cut = [&](int axis, int& shift, int64_t most) {
      while ((problem.size[axis] - 1) >> shift >= most) ++shift;
      return ((problem.size[axis] - 1) >> shift) + 1;
    };
    Bands cells{0, -1, 0, 0, 1, 1, false};
    int64_t along = parts;
    if (ndim_ > 1)
      while (along * along > parts) along /= 2;
    cells.number = cut(0, cells.shift, along);
    if (ndim_ > 1) {
      cells.second = 1;
      cells.second_number = cut(1, cells.second_shift, parts / cells.number);
    }
    sorted_.emplace(finest_, cells, number() * bytes_of_level(1));
    order_ = sorted_->band(0, 0, {0, points(), 0, 0}).order;
  }

  // All points, in this order.
  Range all() const { return {0, points(), 0, 0, order_}; }

  // Calls f(range) for ranges of them.
  template <class F>
  void for_points(F f) const {
    constexpr int64_t kRange = 1024;
    const Range points = all();
    parallel(ceil_div(points.point_end, kRange), number() * bytes_of_level(1),
             [&](int64_t begin, int64_t end) {
               Range range = points;
               range.point_begin = begin * kRange;
               range.point_end = std::min(end * kRange, points.point_end);
               f(range);
             });
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
    Shape shape;
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
  int ndim_;
  int64_t entries_ = 0;  // of all levels
  std::vector<Problem> levels_;
  std::optional<SortedPoints> sorted_;
  const int64_t* order_ = nullptr;  // of the points; null: their own
};

Tensor sample_levels(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
                     const std::optional<Tensor>& jitter_std, const std::vector<int64_t>& sizes,
                     int64_t options) {
  LevelsCall call(values, coords, seed, jitter_std, sizes, options);
  const Tensor output = empty(call.output_shape(), ScalarType::Float);
  if (call.points() == 0 || call.channels() == 0) return output;
  call.sort();
  float* const to = static_cast<float*>(output.data_ptr());
  const bool streaming = call.streams();
  call.for_points(
      [&](const Range& range) { level_kernels().sample(call.levels(), range, to, streaming); });
  return output;
}

// Parts of the levels, of which any run has as many large ones.
class Parts {
 public:
  Parts(const LevelsCall& call, int64_t number) {
    const int64_t levels = call.number();
    std::vector<int64_t> by_size(levels);
    for (int64_t i = 0; i < levels; ++i) by_size[i] = i;
    std::stable_sort(by_size.begin(), by_size.end(), [&](int64_t a, int64_t b) {
      return call.level(a).entries > call.level(b).entries;
    });
    int64_t every = 1;
    while (every < levels) every *= 2;
    // The bits of ranks reversed: of every run of 2^n places, the ranks are 2^n apart.
    for (int64_t place = 0; place < every; ++place) {
      int64_t rank = 0;
      for (int64_t bit = 1; bit < every; bit *= 2) rank = 2 * rank + ((place & bit) != 0);
      if (rank < levels) level_.push_back(by_size[rank]);
    }
    for (int64_t part = 1; part <= number; ++part) end_.push_back(part * levels / number);
  }

  LevelParts all() const { return {level_.data(), end_.data(), static_cast<int64_t>(end_.size())}; }

 private:
  std::vector<int64_t> level_, end_;
};

// A backward pass.
class LevelsBackward {
 public:
  LevelsBackward(const LevelsCall& call, const float* grad_output, float* grad_values,
                 float* grad_coords)
      : call_(call), grad_output_(grad_output), grad_coords_(grad_coords) {
    for (int64_t l = 0; grad_values && l < call.number(); ++l) {
      grad_values_.push_back(grad_values);
      grad_values += call.level(l).entries * call.channels();
    }
  }

  void run() {
    const int64_t number = call_.number();
    if (!grad_coords_) return values(Parts(call_, number).all());
    const Parts parts(call_, std::min(number, kParts));
    if (grad_values_.empty()) return coords(parts.all());
    both(parts.all());
  }

 private:
  // A level's points are added in one order, by one thread at a time.
  void values(const LevelParts& parts) {
    parallel(parts.number, call_.number() * call_.bytes_of_level(3),
             [&](int64_t first, int64_t last) {
               clear(parts, first, last);
               level_kernels().gradients(call_.levels(), parts, first, last, call_.all(),
                                         grad_output_, {grad_values_.data(), nullptr, nullptr});
             });
  }

  void coords(const LevelParts& parts) {
    call_.for_points([&](const Range& range) {
      level_kernels().gradients(call_.levels(), parts, 0, parts.number, range, grad_output_,
                                {nullptr, grad_coords_, nullptr});
    });
  }

  // A part is one thread's. What the parts add up to comes after them, unless one thread has them
  // all. As many points are taken at a time as leave the parts' sums in the caches.
  void both(const LevelParts& parts) {
    constexpr int64_t kPoints = 64 * 1024;
    const int ndim = call_.level(0).ndim;
    const int64_t blocks = ceil_div(std::min(call_.points(), kPoints), int64_t{kLevelBlock});
    const Tensor sums = empty({parts.number * blocks * kLevelBlock * ndim}, ScalarType::Float);
    float* const sums_at = static_cast<float*>(sums.data_ptr());
    for (int64_t begin = 0; begin < call_.points(); begin += kPoints) {
      Range range = call_.all();
      range.point_begin = begin;
      range.point_end = std::min(begin + kPoints, range.point_end);
      const int64_t points = range.point_end - begin;
      bool alone = false;
      parallel(parts.number, call_.number() * call_.bytes_of_level(4) * points / call_.points(),
               [&](int64_t first, int64_t last) {
                 if (begin == 0) clear(parts, first, last);
                 const bool all = last - first == parts.number;
                 if (all) alone = true;
                 level_kernels().gradients(
                     call_.levels(), parts, first, last, range, grad_output_,
                     {grad_values_.data(), all ? grad_coords_ : nullptr, all ? nullptr : sums_at});
               });
      if (alone) continue;
      parallel(ceil_div(points, int64_t{kLevelBlock}), points * ndim * parts.number * 4,
               [&](int64_t first, int64_t last) {
                 level_kernels().add_parts(call_.levels(), parts.number, range, first, last,
                                           sums_at, grad_coords_);
               });
    }
  }

  void clear(const LevelParts& parts, int64_t first, int64_t last) const {
    for (int64_t i = parts.begin(first); i < parts.end[last - 1]; ++i) {
      const int64_t l = parts.level[i];
      std::memset(grad_values_[l], 0, call_.level(l).entries * call_.channels() * sizeof(float));
    }
  }

  static constexpr int64_t kParts = 8;  // which share the gradient of coords

  const LevelsCall& call_;
  const float* const grad_output_;
  std::vector<float*> grad_values_;
  float* const grad_coords_;
};

// The gradients of sum(grad_output * sample_levels(values, coords)) with respect to values and
// coords; an empty tensor for the one that is not wanted.
std::tuple<Tensor, Tensor> sample_levels_backward(
    const Tensor& grad_output_in, const Tensor& values, const Tensor& coords,
    const std::optional<Tensor>& seed, const std::optional<Tensor>& jitter_std,
    const std::vector<int64_t>& sizes, int64_t options, bool want_values, bool want_coords) {
  LevelsCall call(values, coords, seed, jitter_std, sizes, options);
  const Shape shape = call.output_shape();
  STD_TORCH_CHECK(same_device(grad_output_in, values) &&
                      grad_output_in.scalar_type() == ScalarType::Float &&
                      std::equal(shape.begin(), shape.end(), grad_output_in.sizes().begin(),
                                 grad_output_in.sizes().end()),
                  "sample_levels_backward(): expected grad_output of the shape of the sample, with "
                  "the dtype and device of values");
  Tensor grad_values = empty(gradient_shape(values, want_values), ScalarType::Float);
  Tensor grad_coords = empty(gradient_shape(coords, want_coords), ScalarType::Float);
  if (call.points() == 0 || call.channels() == 0) {
    torch::stable::zero_(grad_values);
    torch::stable::zero_(grad_coords);
    return {grad_values, grad_coords};
  }
  call.sort();
  const Tensor grad_output = dense(grad_output_in);
  const auto at = [](bool wanted, const Tensor& gradient) {
    return wanted ? static_cast<float*>(gradient.data_ptr()) : nullptr;
  };
  if (want_values || want_coords)
    LevelsBackward(call, static_cast<const float*>(grad_output.data_ptr()),
                   at(want_values, grad_values), at(want_coords, grad_coords))
        .run();
  return {grad_values, grad_coords};
}

}  // namespace
}  // namespace crad

STABLE_TORCH_LIBRARY_IMPL(crad_kernels, CPU, library) {
  library.impl("sample_levels.cpu", TORCH_BOX(&crad::sample_levels));
  library.impl("sample_levels_backward.cpu", TORCH_BOX(&crad::sample_levels_backward));
}
