// The operators sample_levels and sample_levels_backward: several grids of different sizes, packed
// one behind the other into one tensor, sampled at the same points.
//
// level_loops.h has the loops, compiled for each instruction set. What they do not do, such as
// other modes, is composed of samples: see crad_kernels/_level_operators.py.
#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/numbers.h"
#include "../operator/level_call.h"
#include "empty.h"
#include "kernels.h"
#include "parallel.h"
#include "plan.h"
#include "sort.h"

namespace crad {
namespace {

// A call whose points are taken in an order of their own.
class OrderedLevels : public LevelsCall {
 public:
  OrderedLevels(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
                const std::optional<Tensor>& jitter_std, const std::vector<int64_t>& sizes,
                int64_t options)
      : LevelsCall(DeviceType::CPU, values, coords, seed, jitter_std, sizes, options) {}

  Levels table() const { return {levels().data(), number()}; }

  // Bytes that all points move in one level: what it takes to locate them, and their corners, each
  // so many times.
  int64_t bytes_of_level(int64_t times) const {
    constexpr int64_t kLocated = 16;
    return points() * (kLocated + (times * corners_of(finest().problem) + 1) * channels() * 4);
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
    const Problem& problem = finest().problem;
    if (entries() * channels() * kForwardBytes <= kNear || points() < kFewest) return;
    const int ndim = problem.ndim;
    if (ndim <= 3 && reads_near_by(problem)) return;
    // Cells of the finest level, cut along two axes.
    constexpr int64_t kMostParts = 4096, kPoints = 32;
    const int64_t parts = std::min(kMostParts, points() / kPoints);
    const auto cut = [&](int axis, int& shift, int64_t most) {
      while ((problem.size[axis] - 1) >> shift >= most) ++shift;
      return ((problem.size[axis] - 1) >> shift) + 1;
    };
    Bands cells{0, -1, 0, 0, 1, 1, false};
    int64_t along = parts;
    if (ndim > 1)
      while (along * along > parts) along /= 2;
    cells.number = cut(0, cells.shift, along);
    if (ndim > 1) {
      cells.second = 1;
      cells.second_number = cut(1, cells.second_shift, parts / cells.number);
    }
    sorted_.emplace(finest(), cells, number() * bytes_of_level(1));
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
  std::optional<SortedPoints> sorted_;
  const int64_t* order_ = nullptr;  // of the points; null: their own
};

Tensor sample_levels(const Tensor& values, const Tensor& coords, const std::optional<Tensor>& seed,
                     const std::optional<Tensor>& jitter_std, const std::vector<int64_t>& sizes,
                     int64_t options) {
  OrderedLevels call(values, coords, seed, jitter_std, sizes, options);
  const Tensor output = empty(call.output_shape(), ScalarType::Float);
  if (call.empty()) return output;
  call.sort();
  float* const to = static_cast<float*>(output.data_ptr());
  const bool streaming = call.streams();
  call.for_points(
      [&](const Range& range) { kernels().levels->sample(call.table(), range, to, streaming); });
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
  LevelsBackward(const OrderedLevels& call, const float* grad_output, float* grad_values,
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
               kernels().levels->gradients(call_.table(), parts, first, last, call_.all(),
                                           grad_output_, {grad_values_.data(), nullptr, nullptr});
             });
  }

  void coords(const LevelParts& parts) {
    call_.for_points([&](const Range& range) {
      kernels().levels->gradients(call_.table(), parts, 0, parts.number, range, grad_output_,
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
                 kernels().levels->gradients(
                     call_.table(), parts, first, last, range, grad_output_,
                     {grad_values_.data(), all ? grad_coords_ : nullptr, all ? nullptr : sums_at});
               });
      if (alone) continue;
      parallel(ceil_div(points, int64_t{kLevelBlock}), points * ndim * parts.number * 4,
               [&](int64_t first, int64_t last) {
                 kernels().levels->add_parts(call_.table(), parts.number, range, first, last,
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

  const OrderedLevels& call_;
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
  OrderedLevels call(values, coords, seed, jitter_std, sizes, options);
  call.check(grad_output_in);
  Tensor grad_values = empty(gradient_shape(values, want_values), ScalarType::Float);
  Tensor grad_coords = empty(gradient_shape(coords, want_coords), ScalarType::Float);
  if (call.empty()) return {torch::stable::zero_(grad_values), torch::stable::zero_(grad_coords)};
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
