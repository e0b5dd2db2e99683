// The rows of the output's gradient that the points of a block have, whatever its strides.
#pragma once

#include "kernels.h"
#include "locate.h"
#include "transpose.h"

namespace crad {
namespace {

// Read in place where the channels of a row follow each other, or else packed.
template <class T>
class GradientRows {
 public:
  GradientRows(const Problem& problem, const Range& range, const Gradients& gradients)
      : strides_(gradients.grad_output_strides),
        channels_(problem.channels),
        wanted_(range.channel_end - range.channel_begin),
        first_(static_cast<const T*>(gradients.grad_output) +
               range.channel_begin * (strides_ ? strides_->step : 1)),
        packed_(strides_ && strides_->step != 1 ? kLanes * wanted_ : 0) {}

  void fetch(const int64_t (&point)[kLanes]) {
    if (!strides_) {
      for (int i = 0; i < kLanes; ++i) row_[i] = first_ + point[i] * channels_;
      return;
    }
    int64_t offset[kLanes];
    offsets_of(*strides_, point, offset);
    if (strides_->step == 1)
      for (int i = 0; i < kLanes; ++i) row_[i] = first_ + offset[i];
    else
      pack(offset);
  }

  // That of a point of the block, from the first channel of the range on.
  const T* operator[](int i) const { return row_[i]; }

  // Asks for the start of a row ahead of its use; not where it would take a division to find it.
  // (Inlined by force: GCC drops calls of a function that does nothing else.)
  __attribute__((always_inline)) void prefetch(int64_t point) const {
    if (!strides_)
      __builtin_prefetch(first_ + point * channels_);
    else if (strides_->axes == 1)
      __builtin_prefetch(first_ + point * strides_->stride[0]);
  }

 private:
  __attribute__((noinline)) void pack(const int64_t (&offset)[kLanes]) {
    bool same = true, follow = true;
    for (int i = 1; i < kLanes; ++i) {
      same &= offset[i] == offset[0];
      follow &= offset[i] == offset[0] + i;
    }
    const T* const from = first_;
    T* const to = packed_.get();
    const int64_t step = strides_->step;
    for (int i = 0; i < kLanes; ++i) row_[i] = to + (same ? 0 : i * wanted_);
    if (same && offset[0] == only_packed_) return;
    only_packed_ = same ? offset[0] : -1;
    if (follow)
      return transpose_matrix(sizeof(T), from + offset[0], step, wanted_, kLanes, to, wanted_);
    // Channel by channel: those of a row may all fall into one set of a cache.
    const int rows = same ? 1 : kLanes;
    for (int64_t c = 0, wanted = wanted_; c < wanted; ++c)
      for (int i = 0; i < rows; ++i) to[i * wanted + c] = from[offset[i] + c * step];
  }

  const RowStrides* const strides_;  // null: contiguous
  const int64_t channels_, wanted_;
  const T* const first_;
  Buffer<T> packed_;
  const T* row_[kLanes];
  int64_t only_packed_ = -1;  // the offset of the one row in the buffer, if there is one
};

}  // namespace
}  // namespace crad
